"""IA³ on MLX. The formulas and names are those of spec/tuners/ia3.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.ia3 import VECTOR
from finetune_local_backends.mlx.model import Model
from finetune_local_backends.mlx.tuners import Adapter, Floats
from finetune_local_backends.mlx.tuners.sites import SiteAdapter, Slot


class ScaledOutput(Slot):
    """y ∘ l, with l (out, 1)."""

    vector: mx.array
    goes_on = True

    def __init__(self, module: str) -> None:
        super().__init__(module, {"vector": PREFIX + module + VECTOR})

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        return self.beside(base, x, base(x))

    def beside(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See Slot. The product is taken in fp32: in bf16 a factor would be 1 until it has changed by 0.4 %."""
        return (y.astype(mx.float32) * self.vector.flatten()).astype(y.dtype)


class ScaledInput(Slot):
    """The layer of x ∘ l, with l (1, in)."""

    vector: mx.array

    def __init__(self, module: str) -> None:
        super().__init__(module, {"vector": PREFIX + module + VECTOR})

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        result: mx.array = base((x.astype(mx.float32) * self.vector.flatten()).astype(x.dtype))
        return result


def attach(model: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> Adapter:
    """A vector at every target."""
    slots = (ScaledInput(t.module) if t.in_features else ScaledOutput(t.module) for t in plan.targets)
    return SiteAdapter(tensors, [(model.linear(t), slot) for t, slot in zip(plan.targets, slots, strict=True)])
