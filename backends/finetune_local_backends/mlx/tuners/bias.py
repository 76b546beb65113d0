"""Trained biases on MLX. See spec/tuners/bias.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.bias import CHANGE, layer_of
from finetune_local_backends.mlx.model import Model, Place
from finetune_local_backends.mlx.tuners import Adapter, Floats
from finetune_local_backends.mlx.tuners.sites import SiteAdapter, Slot


class BiasSlot(Slot):
    """y + change, with the change (out,)."""

    change: mx.array
    goes_on = True

    def __init__(self, module: str) -> None:
        super().__init__(module, {"change": PREFIX + module + CHANGE})

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        return self.beside(base, x, base(x))

    def beside(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See Slot."""
        return y + self.change.astype(y.dtype)


def attach(model: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> Adapter:
    """A vector at every target."""
    return SiteAdapter(tensors, [(_place(model, target), BiasSlot(layer_of(target))) for target in plan.targets])


def _place(model: Model, target: Target) -> Place:
    return model.linear(Target(layer_of(target), target.in_features, target.out_features))
