"""LoRA and DoRA on MLX. The formulas and names are those of spec/families/low_rank.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx

from finetune_local.spec.families import PREFIX
from finetune_local.spec.families.low_rank import MAGNITUDE, A, B, LowRankSettings
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local_backends.mlx import kernels
from finetune_local_backends.mlx.methods import Adapter, Floats
from finetune_local_backends.mlx.methods.sites import SiteAdapter, Slot
from finetune_local_backends.mlx.model import Model, dense_weight


class LowRankSlot(Slot):
    """A (rank, in) and B (out, rank) beside a linear layer, with DoRA the magnitude (out,) too.

    With DoRA `norm` (out,) is ‖W + s·B·A‖ by row, a constant to the gradient, and `square` (out,) is ‖W‖².
    """

    a: mx.array
    b: mx.array
    magnitude: mx.array
    norm: mx.array
    square: mx.array | None = None

    def __init__(self, target: Target, settings: LowRankSettings) -> None:
        names = {"a": A, "b": B} | ({"magnitude": MAGNITUDE} if settings.use_dora else {})
        prefix = PREFIX + target.module
        super().__init__(target.module, {key: prefix + name for key, name in names.items()}, settings.dropout)
        self.scale, self.dora = settings.scale, settings.use_dora

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        y: mx.array = base(x)
        dropped = self.dropped(x)
        if not self.dora:
            return kernels.low_rank(y, dropped, self.a, self.b, self.scale)
        bias = base.bias if "bias" in base else None
        plain = y.astype(mx.float32) if bias is None else y.astype(mx.float32) - bias.astype(mx.float32)
        factor = self.magnitude / self.norm
        if self.key is None or self.rate == 0:
            result = factor * kernels.low_rank(plain, dropped, self.a, self.b, self.scale)
        else:  # as in PEFT: only the part of the base that DoRA adds sees the dropped input
            again = base(dropped).astype(mx.float32)
            again = again if bias is None else again - bias.astype(mx.float32)
            update = kernels.low_rank(mx.zeros((), mx.float32), dropped, self.a, self.b, self.scale)
            result = plain + (factor - 1) * again + factor * update
        return (result if bias is None else result + bias.astype(mx.float32)).astype(y.dtype)

    def refresh(self, base: Any) -> None:
        """DoRA's norms, without forming B·A: ‖W + sBA‖² = ‖W‖² + 2s⟨W·Aᵀ, B⟩ + s²⟨B·A·Aᵀ, B⟩ by row."""
        if not self.dora:
            return
        weight = dense_weight(base)
        cross = ((weight @ self.a.T) * self.b).sum(axis=1)
        update = ((self.b @ (self.a @ self.a.T)) * self.b).sum(axis=1)
        if self.square is None:
            self.square = mx.square(weight).sum(axis=1)
        self.norm = mx.sqrt(self.square + 2 * self.scale * cross + self.scale**2 * update)
        mx.eval(self.norm, self.square)


def attach(model: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> Adapter:
    """A, B and with DoRA the magnitude, beside every target."""
    settings = cast(LowRankSettings, plan.settings)
    return SiteAdapter(tensors, [(model.linear(target), LowRankSlot(target, settings)) for target in plan.targets])
