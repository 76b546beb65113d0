"""The window's pages and the server they come from. What they do is done by the same functions that the command line calls."""
