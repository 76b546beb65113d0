"""Whole copies of embeddings and norms on MLX; which ones, see spec/whole.py."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from finetune_local.errors import ModelError
from finetune_local.spec.families import PREFIX
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.whole import BIAS, is_whole, kind_of, module_of, shape_of
from finetune_local_backends.mlx.methods.sites import Slot
from finetune_local_backends.mlx.model import Model, Place


class WholeSlot(Slot):
    """A weight, and a norm's bias, in the place of the module's own; fp32, cast to the base's type when it is used.

    A head tied to an embedding goes on computing with the base's.
    """

    weight: mx.array
    bias: mx.array

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> mx.array:
        """What the module gives with these instead."""
        before = {name: base[name] for name in self.names}
        try:
            for name, array in before.items():
                base[name] = getattr(self, name).astype(array.dtype)
            result: mx.array = base(*args, **kwargs)
            return result
        finally:
            for name, array in before.items():
                base[name] = array


def whole_slots(model: Model, plan: AdapterPlan) -> dict[str, tuple[Place, Slot]]:
    """The slots, with their places, by the modules they go to. Raises ModelError where the model has no such weight."""
    names: dict[str, dict[str, str]] = {}
    places: dict[str, Place] = {}
    for target in plan.targets:
        if not is_whole(target):
            continue
        place = model.weights.get(target.module)
        owner = place.owner if place else None
        if place is None or not isinstance(owner, nn.Module) or tuple(place.get().shape) != shape_of(target):
            raise ModelError(f"this model has no {target.module} of the shape {shape_of(target)} under MLX.")
        names[module_of(target)] = {"weight": PREFIX + target.module}
        places[module_of(target)] = model.modules[id(owner)]
    for target in plan.targets:
        module = target.module.removesuffix(BIAS)
        if target.module.endswith(BIAS) and kind_of(target.module) == "norms" and module in names:
            names[module]["bias"] = PREFIX + target.module
    return {module: (places[module], WholeSlot(module, own)) for module, own in names.items()}
