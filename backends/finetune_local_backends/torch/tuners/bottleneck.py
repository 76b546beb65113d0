"""Bottleneck adapters on torch, at whole sublayers. The formulas are those of spec/tuners/bottleneck.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.bottleneck import DOWN, DOWN_BIAS, UP, UP_BIAS, BottleneckSettings
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, TorchLayers, attach_layers

_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


class BottleneckLayer(AdapterLayer):
    """down: (width, hidden) and its bias (width,); up: (hidden, width) and its bias (hidden,)."""

    shares_base = True

    def __init__(self, down: list[nn.Parameter], up: list[nn.Parameter], settings: BottleneckSettings) -> None:
        super().__init__()
        self.down, self.down_bias = down
        self.up, self.up_bias = up
        self.scale, self.parallel = settings.adapter_scale, settings.adapter_placing == "parallel"
        self.activation = _ACTIVATIONS[settings.adapter_activation]

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The sublayer's hidden states (rows, length, hidden) with the bottleneck's added.

        Attention returns a tuple; its other entries, such as probabilities, are unchanged.
        """
        result = base(*args, **kwargs)
        given = args[0] if args else kwargs["hidden_states"]
        if isinstance(result, tuple):
            return self.from_output(base, given, result[0]), *result[1:]
        return self.from_output(base, given, result)

    def from_output(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer."""
        x = x if self.parallel else y
        kind = x.dtype
        inner = self.activation(functional.linear(x, self.down.to(kind), self.down_bias.to(kind)))
        return torch.add(y, functional.linear(inner, self.up.to(kind), self.up_bias.to(kind)), alpha=self.scale)


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    settings = cast(BottleneckSettings, plan.settings)
    hidden = int(base.model.config.get_text_config().hidden_size)
    layers: dict[str, AdapterLayer] = {}
    for target in plan.targets:
        if hidden != target.in_features:
            raise ModelError(
                msg(
                    "the adapter was trained on a model of width {width}, but this one has width {hidden}.",
                    width=target.in_features,
                    hidden=hidden,
                )
            )
        name = PREFIX + target.module
        down, up = [given[name + DOWN], given[name + DOWN_BIAS]], [given[name + UP], given[name + UP_BIAS]]
        layers[target.module] = BottleneckLayer(down, up, settings)
    return layers


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchLayers:
    """See adapter.py."""
    return attach_layers(base, plan, tensors, _place)
