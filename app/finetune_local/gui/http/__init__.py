"""The server behind the window: who may connect, what may be asked, what a browser is told."""
