"""Pieces of interface that several pages use."""
