"""Base models: which are on disk, where they come from, how much memory they need."""
