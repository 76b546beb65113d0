"""Adapter layers in a base: modules wrapped for them, sums of several, rows of several adapters, whole copies of weights."""
