"""Prepared data on disk, and batches from it."""
