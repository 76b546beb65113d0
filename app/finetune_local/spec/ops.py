"""The array functions in which objectives are written: a protocol, and its numpy implementation, which is their reference.

A backend implements them for its arrays in its `ops.py`; arithmetic operators work on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.integer]


class Ops(Protocol):
    """Functions over a backend's arrays. Gradients pass through all but `array` and `stop_gradient`."""

    def array(self, values: npt.NDArray[np.generic]) -> Any:
        """A numpy array as a constant of the backend, on its device."""
        ...

    def sum(self, array: Any) -> Any:
        """Sum of all elements, a scalar array."""
        ...

    def mean(self, array: Any) -> Any:
        """Mean of all elements, a scalar array."""
        ...

    def exp(self, array: Any) -> Any:
        """e to the power of each element."""
        ...

    def log(self, array: Any) -> Any:
        """Natural logarithm of each element."""
        ...

    def abs(self, array: Any) -> Any:
        """Absolute value of each element."""
        ...

    def square(self, array: Any) -> Any:
        """Each element times itself."""
        ...

    def sigmoid(self, array: Any) -> Any:
        """1 / (1 + exp(-x))."""
        ...

    def log_sigmoid(self, array: Any) -> Any:
        """log(1 / (1 + exp(-x))), without overflow."""
        ...

    def clip(self, array: Any, low: float | None, high: float | None) -> Any:
        """Each element clamped to [low, high]; None leaves that side open."""
        ...

    def where(self, condition: Any, array: Any, other: Any) -> Any:
        """`array` where the condition is true, else `other`; the condition is a boolean array of the backend or of numpy."""
        ...

    def minimum(self, array: Any, other: Any) -> Any:
        """The smaller of two arrays' elements."""
        ...

    def maximum(self, array: Any, other: Any) -> Any:
        """The larger of two arrays' elements."""
        ...

    def take(self, array: Any, indices: Indices) -> Any:
        """array[indices] of a one-dimensional array."""
        ...

    def segment_sum(self, array: Any, segments: Indices, count: int) -> Any:
        """Sums of a one-dimensional array's elements by segment, (count,); `segments` has each element's segment number.

        With Batch.token_rows it sums tokens to rows, with Batch.row_groups rows to examples.
        """
        ...

    def stack(self, arrays: Sequence[Any]) -> Any:
        """Stack arrays of one shape along a new first axis."""
        ...

    def stop_gradient(self, array: Any) -> Any:
        """The same values as a constant."""
        ...


class NumpyOps:
    """See Ops. For validation, where nothing is differentiated, and as the reference the backends are tested against."""

    def array(self, values: npt.NDArray[np.generic]) -> Any:
        """See Ops."""
        return np.asarray(values)

    def sum(self, array: Any) -> Any:
        """See Ops."""
        return np.sum(array)

    def mean(self, array: Any) -> Any:
        """See Ops."""
        return np.mean(array)

    def exp(self, array: Any) -> Any:
        """See Ops."""
        return np.exp(array)

    def log(self, array: Any) -> Any:
        """See Ops."""
        return np.log(array)

    def abs(self, array: Any) -> Any:
        """See Ops."""
        return np.abs(array)

    def square(self, array: Any) -> Any:
        """See Ops."""
        return np.square(array)

    def sigmoid(self, array: Any) -> Any:
        """See Ops."""
        return np.exp(self.log_sigmoid(array))

    def log_sigmoid(self, array: Any) -> Any:
        """See Ops."""
        return -np.logaddexp(np.zeros((), np.asarray(array).dtype), -array)

    def clip(self, array: Any, low: float | None, high: float | None) -> Any:
        """See Ops."""
        return np.clip(array, low, high)

    def where(self, condition: Any, array: Any, other: Any) -> Any:
        """See Ops."""
        return np.where(condition, array, other)

    def minimum(self, array: Any, other: Any) -> Any:
        """See Ops."""
        return np.minimum(array, other)

    def maximum(self, array: Any, other: Any) -> Any:
        """See Ops."""
        return np.maximum(array, other)

    def take(self, array: Any, indices: Indices) -> Any:
        """See Ops."""
        return array[indices]

    def segment_sum(self, array: Any, segments: Indices, count: int) -> Any:
        """See Ops."""
        sums = np.zeros(count, np.asarray(array).dtype)
        np.add.at(sums, segments, array)
        return sums

    def stack(self, arrays: Sequence[Any]) -> Any:
        """See Ops."""
        return np.stack(arrays)

    def stop_gradient(self, array: Any) -> Any:
        """See Ops."""
        return array


NUMPY: Ops = NumpyOps()
