"""Base models: what is on disk, where it comes from, what it needs."""
