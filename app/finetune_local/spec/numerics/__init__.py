"""Arithmetic that both backends must agree on, in numpy: number formats, rotary positions, noise, low-rank factors."""
