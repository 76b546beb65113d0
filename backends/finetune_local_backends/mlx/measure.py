"""How much low-rank updates do to a batch: the squared size of s·B·A·x at each module."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from finetune_local.spec.batch import Batch
from finetune_local_backends.mlx.base.model import Model
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers
from finetune_local_backends.mlx.tuners import MlxAdapter
from finetune_local_backends.mlx.tuners.low_rank import LowRankLayer


class _Measured(AdapterLayer):
    """A layer that also adds up what it does at the real tokens. `real` (rows, length, 1) bool."""

    def __init__(self, layer: LowRankLayer, real: mx.array) -> None:
        super().__init__(layer.module, {})
        self.layer, self.real, self.size = layer, real, mx.array(0.0)

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """As the layer. ‖B·i‖² = i·(BᵀB)·i with i = A·x, so that nothing of the output's width is made."""
        a, b = self.layer.factors()
        inner = mx.where(self.real, x.astype(mx.float32) @ a.T, 0.0)
        self.size = self.size + ((inner @ (b.T @ b)) * inner).sum() * self.layer.scale**2
        return self.layer(base, x)


def update_sizes(model: Model, adapter: MlxAdapter, batch: Batch) -> dict[str, float]:
    """See Session. `adapter` is the active one; layers that are no low-rank updates are left out."""
    real = mx.array(np.arange(batch.ids.shape[1]) < batch.lengths[:, None])[..., None]
    wrapped = adapter.wrapped if isinstance(adapter, MlxLayers) else []
    measured = [(module, _Measured(layer, real)) for module, layer in wrapped if isinstance(layer, LowRankLayer)]
    try:
        for module, layer in measured:
            module.layers.layer = layer
        mx.eval(model.hidden(mx.array(batch.ids.astype(np.int32))), [layer.size for _, layer in measured])
    finally:
        for module, layer in measured:
            module.layers.layer = layer.layer
    return {layer.module: float(np.array(layer.size)) for _, layer in measured}
