"""AdaLoRA on torch. The formulas and names are those of spec/tuners/adalora.py and of PEFT; the budget is spec/numerics/budget.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.adalora import A, AdaLoraSettings, B, E
from finetune_local_backends.torch import kernels
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, TorchLayers, attach_layers, linear_at


class AdaLoraLayer(AdapterLayer):
    """A (rank, in), B (out, rank), E (rank, 1); `weight` scales this layer's orthogonality penalty."""

    def __init__(
        self, a: nn.Parameter, b: nn.Parameter, e: nn.Parameter, settings: AdaLoraSettings, weight: float
    ) -> None:
        super().__init__()
        self.a, self.b, self.e = a, b, e
        self.scale, self.dropout, self.weight = settings.scale, settings.dropout, weight

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        result: torch.Tensor
        if not len(self.e):  # all ranks of this layer were pruned
            result = base(x)
            return result
        a = self.a * self.e
        if self.dropout and self.training and torch.is_grad_enabled():
            dropped = functional.dropout(x, self.dropout)
            return kernels.low_rank_plain(x, dropped, a, self.b, None, None, self.scale, base)
        result = kernels.LowRankLinear.apply(x, a, self.b, None, None, self.scale, base)  # type: ignore[no-untyped-call]
        return result

    def update(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer."""
        return kernels.low_rank_update(x, self.a * self.e, self.b, self.scale) if len(self.e) else torch.zeros_like(y)

    def penalty(self) -> torch.Tensor | None:
        """‖A·Aᵀ − I‖ + ‖Bᵀ·B − I‖ (Frobenius), weighted."""
        if not self.weight or not len(self.e):
            return None
        one = torch.eye(len(self.e), device=self.a.device)
        parts: list[torch.Tensor] = [
            torch.linalg.vector_norm(m - one) for m in (self.a @ self.a.t(), self.b.t() @ self.b)
        ]
        return self.weight * (parts[0] + parts[1])


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    settings = cast(AdaLoraSettings, plan.settings)
    weight = settings.orth_weight / (2 * len(plan.targets))  # the mean over all A and B, as in PEFT
    layers: dict[str, AdapterLayer] = {}
    for target in plan.targets:
        linear_at(base, target)
        name = PREFIX + target.module
        layers[target.module] = AdaLoraLayer(given[name + A], given[name + B], given[name + E], settings, weight)
    return layers


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchLayers:
    """See adapter.py."""
    return attach_layers(base, plan, tensors, _place)
