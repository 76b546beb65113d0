"""Trained biases on MLX. See spec/tuners/bias.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.bias import CHANGE, layer_of
from finetune_local_backends.mlx.base.model import Model, Place
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers


class BiasLayer(AdapterLayer):
    """y + change, with the change (out,)."""

    change: mx.array
    shares_base = True

    def __init__(self, module: str) -> None:
        super().__init__(module, {"change": PREFIX + module + CHANGE})

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        return self.from_output(base, x, base(x))

    def from_output(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer."""
        return y + self.change.astype(y.dtype)

    def update(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer."""
        return mx.broadcast_to(self.change, y.shape)


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxLayers:
    """A vector at every target."""
    return MlxLayers(tensors, [(_place(base, target), BiasLayer(layer_of(target))) for target in plan.targets])


def _place(model: Model, target: Target) -> Place:
    return model.linear(Target(layer_of(target), target.in_features, target.out_features))
