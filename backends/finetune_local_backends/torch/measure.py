"""How much low-rank updates do to a batch: the squared size of s·B·A·x at each module."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from finetune_local.spec.batch import Batch
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, TorchLayers
from finetune_local_backends.torch.tuners import TorchAdapter
from finetune_local_backends.torch.tuners.low_rank import LowRankLayer


class _Measured(AdapterLayer):
    """A layer that also adds up what it does at the real tokens. `real` (rows, length) bool."""

    def __init__(self, layer: LowRankLayer, real: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.real, self.size = layer, real, 0.0

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """As the layer. ‖B·i‖² = i·(BᵀB)·i with i = A·x, so that nothing of the output's width is made."""
        a, b = self.layer.factors()
        inner = x.reshape(-1, x.shape[-1])[self.real.flatten()].to(a.dtype) @ a.t()
        self.size += float(((inner @ (b.t() @ b)) * inner).sum()) * self.layer.scale**2
        result: torch.Tensor = self.layer(base, x)
        return result


@torch.no_grad()
def update_sizes(base: Base, adapter: TorchAdapter, batch: Batch) -> dict[str, float]:
    """See Session. `adapter` is the active one; layers that are no low-rank updates are left out."""
    real = torch.from_numpy(np.arange(batch.ids.shape[1]) < batch.lengths[:, None]).to(base.place)
    wrapped = adapter.wrapped if isinstance(adapter, TorchLayers) else []
    measured = [(module, _Measured(layer, real)) for module, layer in wrapped if isinstance(layer, LowRankLayer)]
    try:
        for module, layer in measured:
            module.layers.layer = layer
        base.body(input_ids=torch.from_numpy(batch.ids.astype(np.int64)).to(base.place), use_cache=False)
    finally:
        for module, layer in measured:
            module.layers.layer = layer.layer
    return {layer.layer.module: layer.size for _, layer in measured}
