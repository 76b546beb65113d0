"""Bottleneck adapters on MLX, at whole sublayers. The formulas are those of spec/tuners/bottleneck.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.bottleneck import DOWN, DOWN_BIAS, UP, UP_BIAS, BottleneckSettings
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.base.model import EMBEDDINGS, Model
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers

_ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": mx.tanh,
}


class BottleneckLayer(AdapterLayer):
    """down (width, hidden) and its bias (width,), up (hidden, width) and its bias (hidden,); computed in fp32."""

    shares_base = True
    down: mx.array
    down_bias: mx.array
    up: mx.array
    up_bias: mx.array

    def __init__(self, module: str, settings: BottleneckSettings) -> None:
        names = {"down": DOWN, "down_bias": DOWN_BIAS, "up": UP, "up_bias": UP_BIAS}
        super().__init__(module, {key: PREFIX + module + name for key, name in names.items()})
        self.scale, self.parallel = settings.adapter_scale, settings.adapter_placing == "parallel"
        self.activation = _ACTIVATIONS[settings.adapter_activation]

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> mx.array:
        """The sublayer's hidden states (rows, length, hidden) with the bottleneck's added."""
        return self.from_output(base, args[0], base(*args, **kwargs))

    def from_output(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer."""
        x = x if self.parallel else y
        inner = self.activation(mx.addmm(self.down_bias, x.astype(mx.float32), self.down.T))
        update = mx.addmm(self.up_bias, inner, self.up.T)
        return (y.astype(mx.float32) + self.scale * update).astype(y.dtype)


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxLayers:
    """A layer at every sublayer of the plan."""
    settings = cast(BottleneckSettings, plan.settings)
    width = next((int(place.get().shape[1]) for name, place in base.weights.items() if name.endswith(EMBEDDINGS)), None)
    for target in plan.targets:
        if width not in (None, target.in_features):
            raise ModelError(
                msg(
                    "the adapter was trained on a model of width {width}, but this one has width {hidden}.",
                    width=target.in_features,
                    hidden=width,
                )
            )
    return MlxLayers(tensors, [(base.place_of(t.module), BottleneckLayer(t.module, settings)) for t in plan.targets])
