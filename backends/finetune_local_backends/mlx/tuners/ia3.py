"""IA³ on MLX. The formulas and names are those of spec/tuners/ia3.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.ia3 import VECTOR
from finetune_local_backends.mlx.base.model import Model
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers


class ScaledOutput(AdapterLayer):
    """y ∘ l, with l (out, 1)."""

    vector: mx.array
    shares_base = True

    def __init__(self, module: str) -> None:
        super().__init__(module, {"vector": PREFIX + module + VECTOR})

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        return self.from_output(base, x, base(x))

    def from_output(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer. The product is computed in fp32: in bf16 a factor would stay 1 until it has changed by 0.4 %."""
        return (y.astype(mx.float32) * self.vector.flatten()).astype(y.dtype)


class ScaledInput(AdapterLayer):
    """The layer applied to x ∘ l, with l (1, in)."""

    vector: mx.array

    def __init__(self, module: str) -> None:
        super().__init__(module, {"vector": PREFIX + module + VECTOR})

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        result: mx.array = base((x.astype(mx.float32) * self.vector.flatten()).astype(x.dtype))
        return result


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxLayers:
    """A vector at every target."""
    layers = (ScaledInput(t.module) if t.in_features else ScaledOutput(t.module) for t in plan.targets)
    return MlxLayers(tensors, [(base.linear(t), layer) for t, layer in zip(plan.targets, layers, strict=True)])
