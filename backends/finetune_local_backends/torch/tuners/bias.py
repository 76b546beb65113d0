"""Trained biases on torch. See spec/tuners/bias.py."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.bias import CHANGE, layer_of
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, TorchLayers, attach_layers, linear_at


class BiasLayer(AdapterLayer):
    """y + change, with the change (out,)."""

    shares_base = True

    def __init__(self, change: nn.Parameter) -> None:
        super().__init__()
        self.change = change

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        return self.from_output(base, x, base(x))

    def from_output(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer."""
        return y + self.change.to(y.dtype)

    def update(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer."""
        return self.change.expand_as(y)


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    layers: dict[str, AdapterLayer] = {}
    for target in plan.targets:
        layer = layer_of(target)
        linear_at(base, Target(layer, target.in_features, target.out_features))
        layers[layer] = BiasLayer(given[PREFIX + layer + CHANGE])
    return layers


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchLayers:
    """See adapter.py."""
    return attach_layers(base, plan, tensors, _place)
