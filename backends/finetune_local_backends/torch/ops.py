"""The array functions in which objectives are written, for torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from finetune_local.spec.ops import Indices


class TorchOps:
    """See Ops. Constants are created on the session's device."""

    def __init__(self, place: torch.device) -> None:
        self._place = place

    def array(self, values: npt.NDArray[np.generic]) -> torch.Tensor:
        """See Ops."""
        return torch.from_numpy(np.array(values)).to(self._place)

    def sum(self, array: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return array.sum()

    def mean(self, array: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return array.mean()

    def exp(self, array: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return array.exp()

    def log(self, array: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return array.log()

    def abs(self, array: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return array.abs()

    def square(self, array: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return array.square()

    def sigmoid(self, array: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return array.sigmoid()

    def log_sigmoid(self, array: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return functional.logsigmoid(array)

    def clip(self, array: torch.Tensor, low: float | None, high: float | None) -> torch.Tensor:
        """See Ops."""
        return array.clamp(low, high)

    def where(
        self, condition: torch.Tensor | npt.NDArray[np.bool_], array: torch.Tensor, other: torch.Tensor
    ) -> torch.Tensor:
        """See Ops."""
        chosen = self.array(condition) if isinstance(condition, np.ndarray) else condition
        return torch.where(chosen, array, other)

    def minimum(self, array: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return torch.minimum(array, other)

    def maximum(self, array: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return torch.maximum(array, other)

    def take(self, array: torch.Tensor, indices: Indices) -> torch.Tensor:
        """See Ops."""
        return array.index_select(0, self.array(indices.astype(np.int64)))

    def segment_sum(self, array: torch.Tensor, segments: Indices, count: int) -> torch.Tensor:
        """See Ops."""
        sums = torch.zeros(count, dtype=array.dtype, device=array.device)
        return sums.index_add(0, self.array(segments.astype(np.int64)), array)

    def stack(self, arrays: Sequence[torch.Tensor]) -> torch.Tensor:
        """See Ops."""
        return torch.stack(list(arrays))

    def stop_gradient(self, array: torch.Tensor) -> torch.Tensor:
        """See Ops."""
        return array.detach()
