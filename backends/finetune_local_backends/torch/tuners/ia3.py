"""IA³ on torch. The formulas and names are those of spec/tuners/ia3.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.ia3 import VECTOR
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.tuners.sites import SiteAdapters, Slot, linear_at


class ScaledOutput(Slot):
    """y ∘ l, with l (out, 1)."""

    goes_on = True

    def __init__(self, vector: nn.Parameter) -> None:
        super().__init__()
        self.vector = vector

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        return self.beside(base, x, base(x))

    def beside(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See Slot. The product is taken in fp32: in bf16 a factor would be 1 until it has changed by 0.4 %."""
        return (y * self.vector.flatten()).to(y.dtype)


class ScaledInput(Slot):
    """The layer of x ∘ l, with l (1, in)."""

    def __init__(self, vector: nn.Parameter) -> None:
        super().__init__()
        self.vector = vector

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        result: torch.Tensor = base((x * self.vector.flatten()).to(x.dtype))
        return result


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    for target in plan.targets:
        linear_at(base, target)
        vector = given[PREFIX + target.module + VECTOR]
        slots[target.module] = ScaledInput(vector) if target.in_features else ScaledOutput(vector)
    return slots


def adapters(base: Base) -> SiteAdapters:
    """See the package."""
    return SiteAdapters(base, _place)
