"""LoRA and DoRA on MLX. The formulas and names are those of spec/families/low_rank.py and of PEFT.

Each adapted linear layer is wrapped once; every adapter has a slot in it, and the wrapper computes with one or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetune_local.spec.families import families
from finetune_local.spec.families.low_rank import MAGNITUDE, PREFIX, A, B, LowRankSettings
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local_backends.initial import kaiming_uniform
from finetune_local_backends.mlx import kernels
from finetune_local_backends.mlx.methods import Adapter, Floats, check_tensors
from finetune_local_backends.mlx.model import Model, Place, dense_weight


class Slot:
    """One adapter's part in one layer.

    With DoRA `norm` (out,) is ‖W + s·B·A‖ by row, a constant to the gradient, and `square` (out,) is ‖W‖².
    """

    def __init__(self, target: Target, settings: LowRankSettings) -> None:
        self.prefix = PREFIX + target.module
        self.scale, self.rate, self.dora = settings.scale, settings.dropout, settings.use_dora
        self.a: mx.array
        self.b: mx.array
        self.magnitude: mx.array | None = None
        self.norm: mx.array | None = None
        self.square: mx.array | None = None
        self.key: mx.array | None = None

    def fill(self, parameters: Mapping[str, mx.array]) -> None:
        """Take A, B and the magnitude from parameters by their names on disk."""
        self.a, self.b = parameters[self.prefix + A], parameters[self.prefix + B]
        if self.dora:
            self.magnitude = parameters[self.prefix + MAGNITUDE]

    def dropped(self, x: mx.array) -> mx.array:
        """x with a share of its numbers zeroed and the rest scaled up; the same again for the same key."""
        if self.key is None or self.rate == 0:
            return x
        kept = mx.random.bernoulli(1 - self.rate, x.shape, key=self.key)
        return mx.where(kept, x / (1 - self.rate), mx.zeros((), x.dtype))


class Adapted(nn.Module):
    """A linear layer with slots beside it; with none active it is the layer itself."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base = base
        self.active: Slot | None = None
        self.users = 0

    def __call__(self, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        slot, y = self.active, cast(mx.array, self.base(x))
        if slot is None:
            return y
        dropped = slot.dropped(x)
        if not slot.dora:
            return kernels.low_rank(y, dropped, slot.a, slot.b, slot.scale)
        assert slot.magnitude is not None and slot.norm is not None
        bias = self.base.bias if "bias" in self.base else None
        plain = y.astype(mx.float32) if bias is None else y.astype(mx.float32) - bias.astype(mx.float32)
        factor = slot.magnitude / slot.norm
        if slot.key is None or slot.rate == 0:
            result = factor * kernels.low_rank(plain, dropped, slot.a, slot.b, slot.scale)
        else:  # as in PEFT: only the part of the base that DoRA adds sees the dropped input
            again = self.base(dropped).astype(mx.float32)
            again = again if bias is None else again - bias.astype(mx.float32)
            update = kernels.low_rank(mx.zeros((), mx.float32), dropped, slot.a, slot.b, slot.scale)
            result = plain + (factor - 1) * again + factor * update
        return (result if bias is None else result + bias.astype(mx.float32)).astype(y.dtype)


class LowRankAdapter:
    """See Adapter."""

    def __init__(self, model: Model, plan: AdapterPlan, parameters: dict[str, mx.array]) -> None:
        self._plan = plan
        self.parameters = parameters
        self._layers: list[tuple[Adapted, Slot, Place]] = []
        for target, place in [(target, model.linear(target)) for target in plan.targets]:
            layer = place.get()
            if not isinstance(layer, Adapted):
                layer = Adapted(layer)
                place.put(layer)
            layer.users += 1
            self._layers.append((layer, Slot(target, cast(LowRankSettings, plan.settings)), place))
        self.changed()

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """See Adapter."""
        for layer, slot, _ in self._layers:
            if slot.prefix + A in parameters:
                slot.fill(parameters)
                layer.active = slot

    def withdraw(self) -> None:
        """See Adapter."""
        for layer, _, _ in self._layers:
            layer.active = None

    def remove(self) -> None:
        """See Adapter."""
        for layer, _, place in self._layers:
            layer.users -= 1
            if layer.users == 0:
                place.put(layer.base)

    def changed(self) -> None:
        """DoRA's norms, without forming B·A: ‖W + sBA‖² = ‖W‖² + 2s⟨W·Aᵀ, B⟩ + s²⟨B·A·Aᵀ, B⟩ by row."""
        for layer, slot, _ in self._layers:
            slot.fill(self.parameters)
            if slot.dora:
                weight = dense_weight(layer.base)
                cross = ((weight @ slot.a.T) * slot.b).sum(axis=1)
                update = ((slot.b @ (slot.a @ slot.a.T)) * slot.b).sum(axis=1)
                if slot.square is None:
                    slot.square = mx.square(weight).sum(axis=1)
                slot.norm = mx.sqrt(slot.square + 2 * slot.scale * cross + slot.scale**2 * update)
                mx.eval(slot.norm, slot.square)

    def dropout(self, key: mx.array | None) -> None:
        """A key of its own for every layer, drawn once, so that a checkpointed block computed again drops the same."""
        keys = None if key is None else mx.random.split(key, len(self._layers))
        for index, (_, slot, _) in enumerate(self._layers):
            slot.key = None if keys is None else keys[index]

    def tensors(self) -> dict[str, Floats]:
        """See Adapter."""
        return {name: np.array(array) for name, array in self.parameters.items()}


def attach(model: Model, plan: AdapterPlan, seed: int, tensors: Mapping[str, Floats] | None) -> Adapter:
    """A new adapter from tensors, or: A from the seed, B zero, the magnitude ‖W‖ by row. See Session.attach."""
    shapes = families()[plan.family].shapes(plan)
    places = {PREFIX + target.module: model.linear(target) for target in plan.targets}
    if tensors is not None:
        check_tensors(tensors, shapes)
        parameters = {name: mx.array(np.asarray(tensors[name], np.float32)) for name in shapes}
    else:
        parameters = {}
        for name, shape in shapes.items():
            if name.endswith(A):
                parameters[name] = mx.array(kaiming_uniform(seed, name, shape))
            elif name.endswith(B):
                parameters[name] = mx.zeros(shape, mx.float32)
            else:
                layer = places[name.removesuffix(MAGNITUDE)].get()
                weight = dense_weight(layer.base if isinstance(layer, Adapted) else layer)
                parameters[name] = mx.sqrt(mx.square(weight).sum(axis=1))
    mx.eval(parameters)
    return LowRankAdapter(model, plan, parameters)
