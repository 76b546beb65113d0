"""The dynamic 8-bit type of spec/numerics/dynamic8.py in MLX's operations: the same indices and ranges, computed on the device."""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from finetune_local.spec.numerics.dynamic8 import BLOCK, STEPS, levels, step_indices

_LEAST = 1e-38  # of a range whose inverse is a number; below it a GPU has only 0


def quantise(values: mx.array, signed: bool = True) -> tuple[mx.array, mx.array]:
    """Values (n,) fp32 to indices into levels() (n,) uint8 and the largest magnitude of each block, (⌈n/256⌉,)."""
    blocks = mx.pad(values, (0, -values.size % BLOCK)).reshape(-1, BLOCK)
    largest = mx.abs(blocks).max(axis=1)
    ranges = mx.where(largest > _LEAST, largest, 0.0)
    normed = mx.clip(blocks * (1 / mx.maximum(largest, _LEAST))[:, None], -1, 1)
    normed = mx.where(ranges[:, None] > 0, normed, -1.0)
    places = ((normed + 1) * 0.5 * float(STEPS - 1) + 0.5).astype(mx.uint16)
    return _indices(signed)[places].reshape(-1)[: values.size], ranges


def dequantise(indices: mx.array, ranges: mx.array, signed: bool = True) -> mx.array:
    """The values (n,) fp32 of indices (n,) and ranges (⌈n/256⌉,)."""
    return _levels(signed)[indices] * mx.repeat(ranges, BLOCK)[: indices.size]


@cache
def _levels(signed: bool) -> mx.array:
    return mx.array(levels(signed))


@cache
def _indices(signed: bool) -> mx.array:
    return mx.array(step_indices(signed))
