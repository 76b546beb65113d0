"""How much low-rank updates do to a batch: the squared size of s·B·A·x at each module."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from finetune_local.backend import Batch
from finetune_local_backends.mlx.model import Model
from finetune_local_backends.mlx.tuners.low_rank import LowRankSlot
from finetune_local_backends.mlx.tuners.sites import SiteAdapter, Slot


class _Measured(Slot):
    """A slot that also adds up what it does at the real tokens. `real` (rows, length, 1) bool."""

    def __init__(self, slot: LowRankSlot, real: mx.array) -> None:
        super().__init__(slot.module, {})
        self.slot, self.real, self.size = slot, real, mx.array(0.0)

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """As the slot. ‖B·i‖² = i·(BᵀB)·i with i = A·x, so that nothing of the output's width is made."""
        a, b = self.slot.factors()
        inner = mx.where(self.real, x.astype(mx.float32) @ a.T, 0.0)
        self.size = self.size + ((inner @ (b.T @ b)) * inner).sum() * self.slot.scale**2
        return self.slot(base, x)


def update_sizes(model: Model, adapter: SiteAdapter, batch: Batch) -> dict[str, float]:
    """See Session. `adapter` is the active one; slots that are no low-rank updates are left out."""
    real = mx.array(np.arange(batch.ids.shape[1]) < batch.lengths[:, None])[..., None]
    measured = [(site, _Measured(slot, real)) for site, slot in adapter.sites() if isinstance(slot, LowRankSlot)]
    try:
        for site, slot in measured:
            site.active = slot
        mx.eval(model.hidden(mx.array(batch.ids.astype(np.int32))), [slot.size for _, slot in measured])
    finally:
        for site, slot in measured:
            site.active = slot.slot
    return {slot.module: float(np.array(slot.size)) for _, slot in measured}
