"""Strings, sentences, numbers and dates in the language of the window."""
