"""Adapters on disk and in memory: identity, library, liveness."""
