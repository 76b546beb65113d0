"""LoRA and DoRA on torch. The formulas and names are those of spec/families/low_rank.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from finetune_local.spec.families import PREFIX
from finetune_local.spec.families.low_rank import MAGNITUDE, A, B, LowRankSettings
from finetune_local.spec.plan import AdapterPlan
from finetune_local_backends.torch import kernels
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.methods.sites import SiteAdapters, Slot, linear_at


class LowRankSlot(Slot):
    """A (rank, in), B (out, rank), and with DoRA the magnitude (out,) and the squared row norms of W, which do not change."""

    def __init__(
        self,
        a: nn.Parameter,
        b: nn.Parameter,
        scale: float,
        dropout: float,
        dora: tuple[nn.Parameter, nn.Module] | None,
    ) -> None:
        super().__init__()
        self.a, self.b, self.scale, self.dropout = a, b, scale, dropout
        self.magnitude: nn.Parameter | None = None
        self.squares: torch.Tensor | None = None
        if dora is not None:
            self.magnitude = dora[0]
            self.squares = kernels.dense_weight(dora[1], torch.float32).square().sum(1)

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        norm = None
        if self.squares is not None:
            with torch.no_grad():
                weight = kernels.dense_weight(base, self.a.dtype)
                norm = kernels.row_norms(weight, self.a, self.b, self.scale, self.squares)
        if self.dropout and self.training and torch.is_grad_enabled():
            dropped = functional.dropout(x, self.dropout)
            return kernels.low_rank_plain(x, dropped, self.a, self.b, self.magnitude, norm, self.scale, base)
        result: torch.Tensor = kernels.LowRankLinear.apply(  # type: ignore[no-untyped-call]
            x, self.a, self.b, self.magnitude, norm, self.scale, base
        )
        return result


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, Slot]:
    settings = cast(LowRankSettings, plan.settings)
    slots: dict[str, Slot] = {}
    for target in plan.targets:
        layer, name = linear_at(base, target), PREFIX + target.module
        dora = (given[name + MAGNITUDE], cast(nn.Module, layer)) if settings.use_dora else None
        slots[target.module] = LowRankSlot(given[name + A], given[name + B], settings.scale, settings.dropout, dora)
    return slots


def adapters(base: Base) -> SiteAdapters:
    """See the package."""
    return SiteAdapters(base, _place)
