"""AdamW's two moments of a parameter, in fp32 or blockwise in 8 bits.

8 bits as in bitsandbytes' AdamW8bit (Dettmers et al. 2021, arXiv:2110.02861, section 2): blocks of 256 numbers share a range; the
first moment is stored signed, the second unsigned; parameters of fewer than 4096 numbers stay in fp32. A step computes in fp32
and updates the parameter before the moments are rounded again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import mlx.core as mx

from finetune_local.spec.numerics.dynamic8 import BLOCK
from finetune_local_backends.mlx.kernels import dequantise_8bit, quantise_8bit

MEAN, SQUARE = "exp_avg.", "exp_avg_sq."
MEAN_RANGES, SQUARE_RANGES = "exp_avg_absmax.", "exp_avg_sq_absmax."
LEAST = 4096
"""Smallest size of a parameter whose moments are stored in 8 bits; bitsandbytes' min_8bit_size."""
_CHUNK = 1 << 20  # numbers updated at once in fp32; a multiple of the block size
_STRIDES = (1, 1, BLOCK, 1, BLOCK)  # numbers per entry of: parameter, both indices and their ranges


@dataclass(frozen=True)
class Step:
    """The constants of one update of one parameter: `factor` clips the gradient, `rate` is this parameter's learning rate."""

    beta1: float
    beta2: float
    epsilon: float
    correction: float
    root_correction: float
    rate: float
    decay: float
    factor: float

    def advance(
        self, parameter: mx.array, gradient: mx.array, mean: mx.array, square: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        """The updated parameter and moments, elementwise; all of one shape."""
        gradient = gradient * self.factor
        mean = self.beta1 * mean + (1 - self.beta1) * gradient
        square = self.beta2 * square + (1 - self.beta2) * mx.square(gradient)
        denominator = mx.sqrt(square) / self.root_correction + self.epsilon
        return parameter * self.decay - self.rate / self.correction * (mean / denominator), mean, square


class Moments(Protocol):
    """The state of one parameter. It is immutable: an update returns a new one, so that a step can be undone."""

    def advance(self, parameter: mx.array, gradient: mx.array, step: Step) -> tuple[mx.array, Moments]:
        """The updated parameter, in its shape, and the new moments."""
        ...

    def arrays(self) -> dict[str, mx.array]:
        """The arrays to save, by prefix."""
        ...

    def replaced(self, arrays: dict[str, mx.array]) -> Moments:
        """Moments of the same kind from what arrays() returned."""
        ...


@dataclass(frozen=True)
class Full:
    """fp32, of the parameter's shape."""

    mean: mx.array
    square: mx.array

    def advance(self, parameter: mx.array, gradient: mx.array, step: Step) -> tuple[mx.array, Moments]:
        """See Moments."""
        parameter, mean, square = step.advance(parameter, gradient, self.mean, self.square)
        return parameter, Full(mean, square)

    def arrays(self) -> dict[str, mx.array]:
        """See Moments."""
        return {MEAN: self.mean, SQUARE: self.square}

    def replaced(self, arrays: dict[str, mx.array]) -> Moments:
        """See Moments."""
        return Full(*(arrays[prefix] for prefix in (MEAN, SQUARE)))


@dataclass(frozen=True)
class EightBit:
    """Indices uint8 of the parameter's shape; ranges fp32, one for each block of the flat parameter."""

    mean: mx.array
    mean_ranges: mx.array
    square: mx.array
    square_ranges: mx.array

    _PREFIXES: ClassVar = (MEAN, MEAN_RANGES, SQUARE, SQUARE_RANGES)

    def advance(self, parameter: mx.array, gradient: mx.array, step: Step) -> tuple[mx.array, Moments]:
        """See Moments. A large parameter is updated in chunks, so that its moments are never entirely in fp32."""
        shape, slope = parameter.shape, gradient.reshape(-1)
        now = [
            parameter.reshape(-1),
            self.mean.reshape(-1),
            self.mean_ranges,
            self.square.reshape(-1),
            self.square_ranges,
        ]
        if slope.size <= _CHUNK:
            now = _advance(now, slope, step)
        else:
            for start in range(0, slope.size, _CHUNK):
                starts = [start // stride for stride in _STRIDES]
                chunk = [a[s : s + _CHUNK // n] for a, s, n in zip(now, starts, _STRIDES, strict=True)]
                chunk = _advance(chunk, slope[start : start + _CHUNK], step)
                mx.eval(chunk)  # without a view of `now`, the next line writes in place from the second chunk on
                now = [mx.slice_update(a, c, mx.array([s]), (0,)) for a, c, s in zip(now, chunk, starts, strict=True)]
                mx.eval(now)
        new, mean, mean_ranges, square, square_ranges = now
        return new.reshape(shape), EightBit(mean.reshape(shape), mean_ranges, square.reshape(shape), square_ranges)

    def arrays(self) -> dict[str, mx.array]:
        """See Moments."""
        return dict(zip(self._PREFIXES, (self.mean, self.mean_ranges, self.square, self.square_ranges), strict=True))

    def replaced(self, arrays: dict[str, mx.array]) -> Moments:
        """See Moments."""
        return EightBit(*(arrays[prefix] for prefix in self._PREFIXES))


def new_moments(parameter: mx.array, eight_bit: bool) -> Moments:
    """Moments of zero."""
    shape = parameter.shape
    if not eight_bit or parameter.size < LEAST:
        return Full(mx.zeros(shape, mx.float32), mx.zeros(shape, mx.float32))
    blocks = -(-parameter.size // BLOCK)
    return EightBit(
        mx.zeros(shape, mx.uint8), mx.zeros(blocks, mx.float32), mx.zeros(shape, mx.uint8), mx.zeros(blocks, mx.float32)
    )


def _advance(now: list[mx.array], gradient: mx.array, step: Step) -> list[mx.array]:
    """The updated parameter, and the indices and ranges of both moments; all flat."""
    parameter, mean, mean_ranges, square, square_ranges = now
    means, squares = dequantise_8bit(mean, mean_ranges), dequantise_8bit(square, square_ranges, signed=False)
    parameter, means, squares = step.advance(parameter, gradient, means, squares)
    return [parameter, *quantise_8bit(means), *quantise_8bit(squares, signed=False)]
