"""Arithmetic that both backends must agree on, in numpy: number formats, positions, noise, low-rank factors."""
