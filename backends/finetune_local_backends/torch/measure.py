"""How much low-rank updates do to a batch: the squared size of s·B·A·x at each module."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from finetune_local.backend import Batch
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.tuners.low_rank import LowRankSlot
from finetune_local_backends.torch.tuners.sites import Slot, site_at


class _Measured(Slot):
    """A slot that also adds up what it does at the real tokens. `real` (rows, length) bool."""

    def __init__(self, slot: LowRankSlot, real: torch.Tensor) -> None:
        super().__init__()
        self.slot, self.real, self.size = slot, real, 0.0

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """As the slot. ‖B·i‖² = i·(BᵀB)·i with i = A·x, so that nothing of the output's width is made."""
        a, b = self.slot.factors()
        inner = x.reshape(-1, x.shape[-1])[self.real.flatten()].to(a.dtype) @ a.t()
        self.size += float(((inner @ (b.t() @ b)) * inner).sum()) * self.slot.scale**2
        result: torch.Tensor = self.slot(base, x)
        return result


@torch.no_grad()
def update_sizes(base: Base, slots: Mapping[str, Slot], batch: Batch) -> dict[str, float]:
    """See Session. `slots` are those of the active adapter by module; those that are no low-rank updates are left out."""
    real = torch.from_numpy(np.arange(batch.ids.shape[1]) < batch.lengths[:, None]).to(base.place)
    measured = {path: _Measured(slot, real) for path, slot in slots.items() if isinstance(slot, LowRankSlot)}
    try:
        for path, slot in measured.items():
            site_at(base, path).active = [slot]
        base.body(input_ids=torch.from_numpy(batch.ids.astype(np.int64)).to(base.place), use_cache=False)
    finally:
        for path, slot in measured.items():
            site_at(base, path).active = [slot.slot]
    return {path: slot.size for path, slot in measured.items()}
