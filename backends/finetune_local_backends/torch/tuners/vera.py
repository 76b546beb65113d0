"""VeRA on torch. The formulas and names are those of spec/tuners/vera.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.vera import LAMBDA_B, LAMBDA_D, A, B
from finetune_local.system.errors import ModelError
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.tuners.sites import SiteAdapters, Slot, linear_at


class VeraSlot(Slot):
    """A (rank, in) and B (out, rank), views of the shared ones in the base's type; b (out,), d (rank,)."""

    goes_on = True

    def __init__(self, a: torch.Tensor, b: torch.Tensor, lambda_b: nn.Parameter, lambda_d: nn.Parameter) -> None:
        super().__init__()
        self.a, self.b, self.lambda_b, self.lambda_d = a, b, lambda_b, lambda_d

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        return self.beside(base, x, base(x))

    def beside(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See Slot."""
        kind = x.dtype
        inner = functional.linear(x, self.a.to(kind)) * self.lambda_d.to(kind)
        return y + functional.linear(inner, self.b.to(kind)) * self.lambda_b.to(kind)


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, Slot]:
    slots: dict[str, Slot] = {}
    # One copy in the base's type for all layers: cast where they are used, each layer would keep its own for the way back.
    all_a, all_b = (given[name].data.to(base.dtype) for name in (A, B))
    for target in plan.targets:
        width = linear_at(base, Target(target.module, 0, target.out_features)).in_features
        if width > target.in_features:
            raise ModelError(
                f"{target.module} has {width} inputs in the base, but the adapter was made for at most {target.in_features}."
            )
        name = PREFIX + target.module
        a, b = all_a[:, :width], all_b[: target.out_features]
        slots[target.module] = VeraSlot(a, b, given[name + LAMBDA_B], given[name + LAMBDA_D])
    return slots


def adapters(base: Base) -> SiteAdapters:
    """See the package."""
    return SiteAdapters(base, _place)
