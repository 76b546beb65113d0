"""VeRA on torch. The formulas and names are those of spec/tuners/vera.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.vera import LAMBDA_B, LAMBDA_D, A, B
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, TorchLayers, attach_layers, linear_at


class VeraLayer(AdapterLayer):
    """A (rank, in) and B (out, rank), views of the shared ones in the base's type; b (out,), d (rank,)."""

    shares_base = True

    def __init__(self, a: torch.Tensor, b: torch.Tensor, lambda_b: nn.Parameter, lambda_d: nn.Parameter) -> None:
        super().__init__()
        self.a, self.b, self.lambda_b, self.lambda_d = a, b, lambda_b, lambda_d

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        return self.from_output(base, x, base(x))

    def from_output(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer."""
        return y + self.update(base, x, y)

    def update(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer."""
        kind = x.dtype
        inner = functional.linear(x, self.a.to(kind)) * self.lambda_d.to(kind)
        return functional.linear(inner, self.b.to(kind)) * self.lambda_b.to(kind)


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    layers: dict[str, AdapterLayer] = {}
    # One copy in the base's type for all layers: if each layer cast them, each would save a copy for backward.
    all_a, all_b = (given[name].data.to(base.dtype) for name in (A, B))
    for target in plan.targets:
        width = linear_at(base, Target(target.module, 0, target.out_features)).in_features
        if width > target.in_features:
            raise ModelError(
                msg(
                    "{module} has {width} inputs in the base, but the adapter was made for at most {most}.",
                    module=target.module,
                    width=width,
                    most=target.in_features,
                )
            )
        name = PREFIX + target.module
        a, b = all_a[:, :width], all_b[: target.out_features]
        layers[target.module] = VeraLayer(a, b, given[name + LAMBDA_B], given[name + LAMBDA_D])
    return layers


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchLayers:
    """See adapter.py."""
    return attach_layers(base, plan, tensors, _place)
