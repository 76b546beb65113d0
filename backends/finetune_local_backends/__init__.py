"""The backends: one package each, found by listing this one. They import the port and the spec, nothing above."""
