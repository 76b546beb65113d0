"""One page each; see main.py for what a page offers."""
