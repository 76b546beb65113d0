"""The ground floor: errors, paths, files, the machine, preferences, trash, and reading of untrusted text."""
