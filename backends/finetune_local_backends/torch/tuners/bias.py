"""Trained biases on torch. See spec/tuners/bias.py."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.bias import CHANGE, layer_of
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.tuners.sites import SiteAdapters, Slot, linear_at


class BiasSlot(Slot):
    """y + change, with the change (out,)."""

    goes_on = True

    def __init__(self, change: nn.Parameter) -> None:
        super().__init__()
        self.change = change

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        return self.beside(base, x, base(x))

    def beside(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See Slot."""
        return y + self.change.to(y.dtype)


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    for target in plan.targets:
        layer = layer_of(target)
        linear_at(base, Target(layer, target.in_features, target.out_features))
        slots[layer] = BiasSlot(given[PREFIX + layer + CHANGE])
    return slots


def adapters(base: Base) -> SiteAdapters:
    """See the package."""
    return SiteAdapters(base, _place)
