"""All weights trained, on MLX: fp32 masters, cast to the base's precision where the model computes with them."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetune_local.errors import AdapterError, Unsupported
from finetune_local.spec.families import families
from finetune_local.spec.families.full import PREFIX
from finetune_local.spec.plan import AdapterPlan
from finetune_local_backends.mlx.methods import Adapter, Floats, check_tensors
from finetune_local_backends.mlx.model import Model, Place

_UNUSED = "rotary_emb.inv_freq"  # a constant some old files hold; computed, not loaded


class FullAdapter:
    """See Adapter. The base's own arrays stay in memory, so that going back to it is exact and at once."""

    def __init__(
        self,
        places: dict[str, Place],
        parameters: dict[str, mx.array],
        tied: Mapping[str, str],
        kept: dict[str, Floats],
    ) -> None:
        self.parameters = parameters
        self._places, self._tied, self._kept = places, tied, kept
        self._base: dict[str, mx.array] = {name: place.get() for name, place in places.items()}

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """See Adapter."""
        for name, array in parameters.items():
            self._places[name].put(array.astype(self._base[name].dtype))

    def withdraw(self) -> None:
        """See Adapter."""
        for name, array in self._base.items():
            self._places[name].put(array)

    def remove(self) -> None:
        """Nothing was wrapped."""

    def changed(self) -> None:
        """Nothing is derived."""

    def dropout(self, key: mx.array | None) -> None:
        """There is none."""

    def tensors(self) -> dict[str, Floats]:
        """See Adapter; a tied head is given twice, as in the folder."""
        result = {name: np.array(array) for name, array in self.parameters.items()}
        result.update({head: result[embedding] for head, embedding in self._tied.items()})
        return {**result, **self._kept}


def attach(
    model: Model,
    plan: AdapterPlan,
    seed: int,  # noqa: ARG001 - nothing begins at random
    tensors: Mapping[str, Floats] | None,
) -> Adapter:
    """All weights of the plan, from tensors or as they are in the base. See Session.attach."""
    shapes = families()[plan.family].shapes(plan)
    if any(isinstance(place.owner, nn.QuantizedLinear) for place in model.weights.values()):
        raise Unsupported("all weights can be trained at --precision fp32 or bf16 only; use a LoRA method on this one.")
    if tensors is not None:
        check_tensors(tensors, shapes)
    tied = {PREFIX + head: PREFIX + embedding for head, embedding in model.tied.items() if PREFIX + head in shapes}
    kept: dict[str, Floats] = {}
    places: dict[str, Place] = {}
    parameters: dict[str, mx.array] = {}
    for name, shape in shapes.items():
        if name in tied:
            continue
        place = model.weights.get(name.removeprefix(PREFIX))
        if place is None and name.endswith(_UNUSED):
            kept[name] = tensors[name] if tensors is not None else np.zeros(shape, np.float32)
            continue
        if place is None:
            raise Unsupported(
                f"MLX keeps {name.removeprefix(PREFIX)} in another form, so all weights of this model cannot be trained."
            )
        base = place.get()
        if tuple(base.shape) != tuple(shape):
            raise AdapterError(f"{name} has shape {shape}, but this model's is {tuple(base.shape)}: another base.")
        places[name] = place
        given = tensors[name] if tensors is not None else None
        parameters[name] = base.astype(mx.float32) if given is None else mx.array(np.asarray(given, np.float32))
    for head, embedding in tied.items():
        if tensors is not None and not np.array_equal(tensors[head], tensors[embedding]):
            raise AdapterError(f"{head} differs from the embedding, but this model uses one matrix for both.")
    mx.eval(parameters)
    return FullAdapter(places, parameters, tied, kept)
