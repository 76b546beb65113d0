"""The server behind the window: who may connect, which requests are accepted, which headers a browser gets."""
