"""AdaLoRA on MLX. The formulas and names are those of spec/tuners/adalora.py and of PEFT; the budget is spec/numerics/budget.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.adalora import A, AdaLoraSettings, B, E
from finetune_local_backends.mlx import kernels
from finetune_local_backends.mlx.base.model import Model
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers


class AdaLoraLayer(AdapterLayer):
    """A (rank, in), B (out, rank), E (rank, 1); `weight` scales this layer's orthogonality penalty."""

    shares_base = True
    a: mx.array
    b: mx.array
    e: mx.array

    def __init__(self, module: str, settings: AdaLoraSettings, weight: float) -> None:
        prefix = PREFIX + module
        super().__init__(module, {"a": prefix + A, "b": prefix + B, "e": prefix + E}, settings.dropout)
        self.scale, self.weight = settings.scale, weight

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        return self.from_output(base, x, base(x))

    def from_output(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """The same from y = base(x)."""
        if not self.e.size:  # all ranks of this layer were pruned
            return y
        return kernels.low_rank(y, self.dropped(x), self.a * self.e, self.b, self.scale)

    def update(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer."""
        if not self.e.size:
            return mx.zeros_like(y)
        return kernels.low_rank(mx.zeros((), mx.float32), self.dropped(x), self.a * self.e, self.b, self.scale)

    def penalty(self) -> mx.array | None:
        """‖A·Aᵀ − I‖ + ‖Bᵀ·B − I‖ (Frobenius), weighted."""
        if not self.weight or not self.e.size:
            return None
        one = mx.eye(self.e.shape[0])
        return self.weight * (_norm(self.a @ self.a.T - one) + _norm(self.b.T @ self.b - one))


def _norm(matrix: mx.array) -> mx.array:
    """The norm, kept away from zero, where the root's derivative is infinite."""
    return mx.sqrt(mx.maximum(mx.square(matrix).sum(), 1e-30))


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxLayers:
    """A, B and E beside every target."""
    settings = cast(AdaLoraSettings, plan.settings)
    weight = settings.orth_weight / (2 * max(1, len(plan.targets)))  # the mean over all A and B, as in PEFT
    return MlxLayers(tensors, [(base.linear(t), AdaLoraLayer(t.module, settings, weight)) for t in plan.targets])
