"""The command line: one file per verb, found by listing, imported when called."""
