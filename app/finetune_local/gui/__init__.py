"""The window: its pages and the server that delivers them. They call the same functions as the command line."""
