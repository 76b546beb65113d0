"""IA³ on torch. The formulas and names are those of spec/tuners/ia3.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.ia3 import VECTOR
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, TorchLayers, attach_layers, linear_at


class ScaledOutput(AdapterLayer):
    """y ∘ l, with l (out, 1)."""

    shares_base = True

    def __init__(self, vector: nn.Parameter) -> None:
        super().__init__()
        self.vector = vector

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        return self.from_output(base, x, base(x))

    def from_output(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer. The product is computed in fp32: in bf16 a factor would stay 1 until it has changed by 0.4 %."""
        return (y * self.vector.flatten()).to(y.dtype)


class ScaledInput(AdapterLayer):
    """The layer applied to x ∘ l, with l (1, in)."""

    def __init__(self, vector: nn.Parameter) -> None:
        super().__init__()
        self.vector = vector

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        result: torch.Tensor = base((x * self.vector.flatten()).to(x.dtype))
        return result


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    layers: dict[str, AdapterLayer] = {}
    for target in plan.targets:
        linear_at(base, target)
        vector = given[PREFIX + target.module + VECTOR]
        layers[target.module] = ScaledInput(vector) if target.in_features else ScaledOutput(vector)
    return layers


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchLayers:
    """See adapter.py."""
    return attach_layers(base, plan, tensors, _place)
