"""Confidence intervals by the percentile bootstrap over rows (Efron 1979), seeded, in numpy.

With few rows the intervals are rough, and where all rows are equal they have no width: show the number of rows beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether zero cannot be ruled out."""
        return self.low <= 0 <= self.high

    def as_json(self) -> dict[str, float]:
        """{"mean", "low", "high"}, to six digits after the point."""
        return {"mean": round(self.mean, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def interval(values: Values, weights: Values | None = None, seed: int = 0) -> Interval:
    """The mean of one value per row, (n,), and its interval.

    With `weights` (n,) it is Σ value·weight / Σ weight: rows are drawn, and a row counts by its weight (its tokens).
    """
    weight = np.ones(len(values)) if weights is None else weights
    total = values * weight
    means = np.concatenate([total[drawn].sum(1) / weight[drawn].sum(1) for drawn in _draws(len(values), seed)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(total.sum() / weight.sum()), float(low), float(high))


def difference(first: Values, second: Values, weights: Values | None = None, seed: int = 0) -> Interval:
    """The mean of `second` − `first` on the same rows, and its interval: paired, so that the variance between rows cancels out."""
    return interval(second - first, weights, seed)


def _draws(rows: int, seed: int) -> Iterator[npt.NDArray[np.int32]]:
    """The rows drawn in each resample, (some, rows), in pieces that fit into memory."""
    rng = np.random.default_rng(seed)
    piece = max(1, min(RESAMPLES, 4_000_000 // max(1, rows)))
    for start in range(0, RESAMPLES, piece):
        yield rng.integers(0, rows, (min(piece, RESAMPLES - start), rows), dtype=np.int32)
