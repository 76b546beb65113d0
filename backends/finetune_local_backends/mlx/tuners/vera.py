"""VeRA on MLX. The formulas and names are those of spec/tuners/vera.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.vera import LAMBDA_B, LAMBDA_D, A, B
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.base.model import Model, Place, shape_of
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers


class VeraLayer(AdapterLayer):
    """The shared A (rank, widest) and B (highest, rank), cut to the layer's sizes; b (out,), d (rank,); computed in fp32."""

    a: mx.array
    b: mx.array
    lambda_b: mx.array
    lambda_d: mx.array
    shares_base = True

    def __init__(self, module: str) -> None:
        own = {"lambda_b": PREFIX + module + LAMBDA_B, "lambda_d": PREFIX + module + LAMBDA_D}
        super().__init__(module, {"a": A, "b": B, **own})

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        return self.from_output(base, x, base(x))

    def from_output(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer."""
        return (y.astype(mx.float32) + self.update(base, x, y)).astype(y.dtype)

    def update(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer."""
        inner = (x.astype(mx.float32) @ self.a[:, : x.shape[-1]].T) * self.lambda_d
        return (inner @ self.b[: y.shape[-1]].T) * self.lambda_b


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxLayers:
    """The vectors beside every target, and A and B once."""
    return MlxLayers(tensors, [(_place(base, target), VeraLayer(target.module)) for target in plan.targets])


def _place(model: Model, target: Target) -> Place:
    place = model.linear(Target(target.module, 0, target.out_features))
    width = shape_of(model.weights[target.module + ".weight"].owner)[1]
    if width > target.in_features:
        raise ModelError(
            msg(
                "{module} has {width} inputs in this model, but the adapter was made for at most {most}.",
                module=target.module,
                width=width,
                most=target.in_features,
            )
        )
    return place
