"""The dynamic 8-bit type in numpy, blockwise, bit for bit as bitsandbytes 0.50 computes it on a CPU.

A block's values are divided by its absolute maximum and stored as indices of the nearest of 256 levels, which are denser
near 0 and span seven decades (Dettmers 2016, arXiv:1511.04561; blockwise and unsigned: Dettmers et al. 2021,
arXiv:2110.02861, section 2). QLoRA's scales and the states of 8-bit AdamW use it.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK = 256
"""Values per block."""

STEPS = 1 << 16
"""Even grid on [−1, 1] to which bitsandbytes rounds a value before it picks the nearest level."""


@cache
def levels(signed: bool = True) -> Floats:
    """The 256 levels in ascending order, (256,).

    0, 1 and, for each of seven decades, the centres of equal parts of [0.1, 1]: signed 1, 2, 4 … 64 parts of each sign, unsigned
    twice as many. −1 is not among them, so a block's most negative value may be off by 0.7 % of the range.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = _linspace(2 ** (exponent if signed else exponent + 1) + 1)
        middles = np.float32(10.0 ** (exponent - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += middles.tolist()
        if signed:
            values += (-middles).tolist()
    return np.sort(np.array(values, np.float32))


@cache
def step_indices(signed: bool = True) -> Bytes:
    """Index of the level nearest to each of the STEPS, (65536,).

    Near 0 the grid is coarser than the levels; bitsandbytes' indices are reproduced by rounding to it first.
    """
    table = levels(signed)
    steps = np.float32(-1) + (2 * np.arange(STEPS)).astype(np.float32) / np.float32(STEPS - 1)
    return np.searchsorted((table[:-1] + table[1:]) * np.float32(0.5), steps).astype(np.uint8)


def quantise(values: Floats, signed: bool = True) -> tuple[Bytes, Floats]:
    """Values (n,) to level indices (n,) and the absolute maximum of each block, (⌈n/256⌉,)."""
    padded = np.zeros(-(-values.size // BLOCK) * BLOCK, np.float32)
    padded[: values.size] = values
    blocks = padded.reshape(-1, BLOCK)
    ranges = np.abs(blocks).max(axis=1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        normed = np.clip(blocks * (np.float32(1) / ranges)[:, None], -1, 1)
        normed[ranges == 0] = -1  # bitsandbytes stores index 0; times a range of 0 it is 0
        places = (normed + np.float32(1)) * np.float32(0.5) * np.float32(STEPS - 1) + np.float32(0.5)
        return step_indices(signed)[places.astype(np.uint16)].reshape(-1)[: values.size], ranges


def dequantise(indices: Bytes, ranges: Floats, signed: bool = True) -> Floats:
    """Values (n,) in fp32 from indices (n,) and block maxima (⌈n/256⌉,)."""
    return levels(signed)[indices] * np.repeat(ranges, BLOCK)[: indices.size]


def _linspace(count: int) -> Floats:
    """`count` numbers from 0.1 to 1, the second half computed back from 1, each rounded to fp32 once, as torch does."""
    low, high = np.float32(0.1), np.float32(1)
    step = float((high - low) / np.float32(count - 1))
    places = np.arange(count)
    return np.where(places < count // 2, float(low) + step * places, 1 - step * (count - 1 - places)).astype(np.float32)
