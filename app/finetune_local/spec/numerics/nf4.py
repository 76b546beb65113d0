"""NF4 with double quantisation in numpy, bit for bit as bitsandbytes 0.50 computes it on a CPU.

Blocks of 64 weights are divided by their absolute maximum and stored as 4-bit indices into the NormalFloat table (Dettmers et
al. 2023, arXiv:2305.14314, section 3 and appendix E). The maxima, minus their mean, are stored in 8 bits (dynamic8.py).
An adapter can thus be trained on the same base on every backend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_local.spec.numerics import dynamic8

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK = 64
"""Weights per scale."""

TABLE: Floats = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
"""The 16 levels of NormalFloat-4, (16,): appendix E of the paper."""

_MIDPOINTS: Floats = (TABLE[:-1] + TABLE[1:]) / np.float32(2)
_CHUNK = 1 << 16  # weights at once: what fits a processor's cache; whole blocks
_LANES = 8  # numbers in the vectors that torch adds up
_LEVELS = 4  # of its sums of sums


@dataclass(frozen=True)
class Packed:
    """A quantised tensor of n weights in b = ⌈n/64⌉ blocks.

    codes (⌈n/2⌉,) uint8, two indices into TABLE per byte, the first in the high half; scales (b,) uint8, indices into
    dynamic8.levels(); ranges (⌈b/256⌉,) fp32, the scales' block maxima; offset fp32, the scales' mean.
    """

    shape: tuple[int, ...]
    codes: Bytes
    scales: Bytes
    ranges: Floats
    offset: np.float32

    @property
    def nbytes(self) -> int:
        """Bytes stored: 4.13 bits per weight in a large tensor."""
        return self.codes.nbytes + self.scales.nbytes + self.ranges.nbytes + self.offset.nbytes


def quantise(weight: npt.NDArray[Any]) -> Packed:
    """Quantise a tensor of any shape in flat blocks; a block may span rows, and the last may be shorter."""
    flat = np.ascontiguousarray(weight).reshape(-1)
    codes = np.empty(-(-flat.size // 2), np.uint8)
    scales = np.empty(-(-flat.size // BLOCK), np.float32)
    for start in range(0, flat.size, _CHUNK):
        found, largest = _quantise_blocks(flat[start : start + _CHUNK].astype(np.float32))
        codes[start // 2 : start // 2 + found.size] = found
        scales[start // BLOCK : start // BLOCK + largest.size] = largest
    offset = mean(scales)
    indices, ranges = dynamic8.quantise(scales - offset)
    return Packed(tuple(weight.shape), codes, indices, ranges, offset)


def dequantise(packed: Packed) -> Floats:
    """The tensor in fp32, in its shape."""
    size = math.prod(packed.shape)
    scales = dynamic8.dequantise(packed.scales, packed.ranges) + packed.offset
    weights = pair_table()[packed.codes].reshape(-1)[:size] * np.repeat(scales, BLOCK)[:size]
    return weights.reshape(packed.shape)


@cache
def pair_table() -> Floats:
    """The two weights each byte of codes stands for, (256, 2)."""
    return np.stack([np.repeat(TABLE, 16), np.tile(TABLE, 16)], axis=1)


def mean(values: Floats) -> np.float32:
    """The mean in fp32, summed in torch's order on one CPU thread with 256-bit vectors.

    The order decides the last bits of the sum, and these sometimes decide an index. torch adds four vectors side by side, each
    in separate runs, then the four, then the lanes.
    """
    lanes = _LANES if values.size >= _LANES else 1
    whole = values.size // lanes
    vectors = values[: whole * lanes].reshape(whole, lanes)
    rows = whole // 4
    sums = _sum_of_runs(vectors[: rows * 4].reshape(rows, 4 * lanes)).reshape(4, lanes)
    vector = _in_order([sums[0], *vectors[rows * 4 :], *sums[1:]])
    total = _in_order([np.zeros((), np.float32), *values[whole * lanes :], *vector])
    return np.float32(total / np.float32(values.size))


def _sum_of_runs(rows: Floats) -> Floats:
    """Sum over the rows of (n, width), in nested runs of 2^p rows, four levels deep."""
    power = max(4, max(0, len(rows) - 1).bit_length() // _LEVELS)
    step = 1 << power
    sums = np.zeros((_LEVELS, rows.shape[1]), np.float32)
    done = 0
    while done + step <= len(rows):
        sums[0] = _in_order([sums[0], *rows[done : done + step]])
        done += step
        for level in range(1, _LEVELS):
            sums[level] += sums[level - 1]
            sums[level - 1] = 0
            if done & ((step - 1) << (level * power)):
                break
    result: Floats = _in_order([sums[0], *rows[done:], *sums[1:]])
    return result


def _in_order(parts: list[Any]) -> Any:
    """Sum of equally long vectors in order; numpy's sum uses another order."""
    return np.add.accumulate(np.stack(parts), axis=0)[-1]


def _quantise_blocks(flat: Floats) -> tuple[Bytes, Floats]:
    """Packed codes and absolute maxima of consecutive full blocks, with a shorter last one."""
    full = flat.size // BLOCK * BLOCK
    blocks, rest = flat[:full].reshape(-1, BLOCK), flat[full:]
    tiny = np.float32(1e-38)
    largest = np.abs(blocks).max(axis=1) if full else np.zeros(0, np.float32)
    normed = (blocks * (np.float32(1) / np.maximum(largest, tiny))[:, None]).reshape(-1)
    if rest.size:
        last = np.maximum(np.abs(rest).max(), tiny)
        largest = np.append(largest, last)
        # Divided, not multiplied by the inverse: bitsandbytes treats the shorter block so. Half a byte left over is a 0.
        normed = np.concatenate([normed, rest / last, np.zeros(flat.size % 2, np.float32)])
    codes = np.zeros(normed.size, np.uint8)
    for midpoint in _MIDPOINTS:  # three times faster than a search
        codes += normed > midpoint
    return codes[::2] * np.uint8(16) + codes[1::2], largest
