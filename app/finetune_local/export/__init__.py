"""Merged folders and GGUF files, each behind a gate."""
