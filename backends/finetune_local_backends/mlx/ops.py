"""The array functions that objectives are written in, over MLX arrays."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from finetune_local.spec.ops import Indices


class MlxOps:
    """See Ops."""

    def array(self, values: npt.NDArray[np.generic]) -> mx.array:
        """See Ops."""
        return mx.array(np.asarray(values))

    def sum(self, array: mx.array) -> mx.array:
        """See Ops."""
        return array.sum()

    def mean(self, array: mx.array) -> mx.array:
        """See Ops."""
        return array.mean()

    def exp(self, array: mx.array) -> mx.array:
        """See Ops."""
        return mx.exp(array)

    def log(self, array: mx.array) -> mx.array:
        """See Ops."""
        return mx.log(array)

    def abs(self, array: mx.array) -> mx.array:
        """See Ops."""
        return mx.abs(array)

    def square(self, array: mx.array) -> mx.array:
        """See Ops."""
        return mx.square(array)

    def sigmoid(self, array: mx.array) -> mx.array:
        """See Ops."""
        return mx.sigmoid(array)

    def log_sigmoid(self, array: mx.array) -> mx.array:
        """See Ops."""
        return -mx.logaddexp(mx.zeros((), array.dtype), -array)

    def clip(self, array: mx.array, low: float | None, high: float | None) -> mx.array:
        """See Ops."""
        return mx.clip(array, low, high)

    def where(self, condition: mx.array | npt.NDArray[np.bool_], array: mx.array, other: mx.array) -> mx.array:
        """See Ops."""
        chosen = self.array(condition) if isinstance(condition, np.ndarray) else condition
        return mx.where(chosen, array, other)

    def minimum(self, array: mx.array, other: mx.array) -> mx.array:
        """See Ops."""
        return mx.minimum(array, other)

    def maximum(self, array: mx.array, other: mx.array) -> mx.array:
        """See Ops."""
        return mx.maximum(array, other)

    def take(self, array: mx.array, indices: Indices) -> mx.array:
        """See Ops."""
        return array[mx.array(indices.astype(np.int32))]

    def segment_sum(self, array: mx.array, segments: Indices, count: int) -> mx.array:
        """See Ops."""
        return mx.zeros(count, array.dtype).at[mx.array(segments.astype(np.int32))].add(array)

    def stack(self, arrays: Sequence[mx.array]) -> mx.array:
        """See Ops."""
        return mx.stack(list(arrays))

    def stop_gradient(self, array: mx.array) -> mx.array:
        """See Ops."""
        return mx.stop_gradient(array)


OPS = MlxOps()
