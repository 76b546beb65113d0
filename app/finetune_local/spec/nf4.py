"""NF4 with double quantisation in numpy, number for number as bitsandbytes (0.50) computes it on a CPU.

Blocks of 64 weights are divided by their largest magnitude and become 4-bit indices into the NormalFloat table (Dettmers et al.
2023, arXiv:2305.14314, section 3 and appendix E). The magnitudes, less their mean, are held in 8 bits again: blocks of 256 under
the dynamic map (Dettmers 2016, arXiv:1511.04561). So an adapter can be trained over the same base on every backend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

BLOCK, SCALE_BLOCK = 64, 256
"""How many weights share a scale, and how many scales share one of their own."""

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
_GRID = 1 << 16  # steps into which bitsandbytes rounds a scale before it looks for the nearest value
_LANES = 8  # numbers in the vectors that torch adds up
_LEVELS = 4  # of its sums of sums


@dataclass(frozen=True)
class Packed:
    """A quantised tensor. With n weights in b = ⌈n/64⌉ blocks:

    codes (⌈n/2⌉,) uint8, two indices into TABLE a byte, the first in the high half; scales (b,) uint8, indices into
    dynamic_map(); ranges (⌈b/256⌉,) fp32, the scales' own scales; offset fp32, the scales' mean.
    """

    shape: tuple[int, ...]
    codes: Bytes
    scales: Bytes
    ranges: Floats
    offset: np.float32

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored: 4.13 bits a weight in a big tensor."""
        return self.codes.nbytes + self.scales.nbytes + self.ranges.nbytes + self.offset.nbytes


def quantise(weight: npt.NDArray[Any]) -> Packed:
    """A tensor of any shape in flat blocks: one may go over the end of a row, and the last may be shorter."""
    flat = np.ascontiguousarray(weight).reshape(-1)
    codes = np.empty(-(-flat.size // 2), np.uint8)
    scales = np.empty(-(-flat.size // BLOCK), np.float32)
    for start in range(0, flat.size, _CHUNK):
        found, largest = _quantise_blocks(flat[start : start + _CHUNK].astype(np.float32))
        codes[start // 2 : start // 2 + found.size] = found
        scales[start // BLOCK : start // BLOCK + largest.size] = largest
    offset = mean(scales)
    indices, ranges = quantise_dynamic(scales - offset)
    return Packed(tuple(weight.shape), codes, indices, ranges, offset)


def dequantise(packed: Packed) -> Floats:
    """The tensor in fp32, in its shape."""
    size = math.prod(packed.shape)
    ranges = np.repeat(packed.ranges, SCALE_BLOCK)[: packed.scales.size]
    scales = dynamic_map()[packed.scales] * ranges + packed.offset
    weights = pair_table()[packed.codes].reshape(-1)[:size] * np.repeat(scales, BLOCK)[:size]
    return weights.reshape(packed.shape)


@cache
def pair_table() -> Floats:
    """What a byte of codes stands for, (256, 2): one look-up gives two weights."""
    return np.stack([np.repeat(TABLE, 16), np.tile(TABLE, 16)], axis=1)


@cache
def dynamic_map() -> Floats:
    """The 256 values of the signed dynamic 8-bit type, ascending, (256,).

    For seven powers of ten the middles of 2^i equal parts of [0.1, 1], of both signs, and 0 and 1. As there is no −1, a
    block's most negative scale is off by 0.7 % of the block's range.
    """
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = _linspace(2**exponent + 1)
        middles = np.float32(10.0 ** (exponent - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [*middles.tolist(), *(-middles).tolist()]
    return np.sort(np.array(values, np.float32))


def quantise_dynamic(values: Floats) -> tuple[Bytes, Floats]:
    """Values (b,) to indices into dynamic_map() (b,) and the largest magnitude of each 256, (⌈b/256⌉,)."""
    padded = np.zeros(-(-values.size // SCALE_BLOCK) * SCALE_BLOCK, np.float32)
    padded[: values.size] = values
    blocks = padded.reshape(-1, SCALE_BLOCK)
    ranges = np.abs(blocks).max(axis=1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        normed = np.clip(blocks * (np.float32(1) / ranges)[:, None], -1, 1)
        normed[ranges == 0] = -1  # bitsandbytes stores index 0; times a range of 0 it is 0
        places = (normed + np.float32(1)) * np.float32(0.5) * np.float32(_GRID - 1) + np.float32(0.5)
        return _grid_indices()[places.astype(np.uint16)].reshape(-1)[: values.size], ranges


def mean(values: Floats) -> np.float32:
    """The mean in fp32, added up in the order in which torch does it on one thread of a CPU with 256-bit vectors.

    The order decides the last bits of the sum, and those now and then decide an index. torch adds four vectors side by
    side, each in runs that are added up apart, then the four to one another, then the numbers of the last one.
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
    """The sum over rows (n, width): in runs of 2^p rows, runs of 2^p runs and so on, four levels in all."""
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
    """The sum of equally long vectors, from the first to the last; numpy's own sum takes another order."""
    return np.add.accumulate(np.stack(parts), axis=0)[-1]


def _quantise_blocks(flat: Floats) -> tuple[Bytes, Floats]:
    """Packed codes and the blocks' largest magnitudes, of a run of whole blocks with a shorter one at the end."""
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


@cache
def _grid_indices() -> Bytes:
    """The index of the value of dynamic_map() nearest to each of 65536 even steps from −1 to 1.

    The steps are coarser than the map is near 0. To have bitsandbytes' indices is to round to them first, as it does.
    """
    table = dynamic_map()
    steps = np.float32(-1) + (2 * np.arange(_GRID)).astype(np.float32) / np.float32(_GRID - 1)
    return np.searchsorted((table[:-1] + table[1:]) * np.float32(0.5), steps).astype(np.uint8)


def _linspace(count: int) -> Floats:
    """`count` numbers from 0.1 to 1, the second half counted back from 1, each rounded to fp32 once, as torch does."""
    low, high = np.float32(0.1), np.float32(1)
    step = float((high - low) / np.float32(count - 1))
    places = np.arange(count)
    return np.where(places < count // 2, float(low) + step * places, 1 - step * (count - 1 - places)).astype(np.float32)
