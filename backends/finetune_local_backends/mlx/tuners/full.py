"""Full fine-tuning on MLX: fp32 masters, cast to the base's precision when used."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX, tuner_of
from finetune_local.system.errors import AdapterError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.base.model import Model, Place
from finetune_local_backends.mlx.tuners import MlxAdapter


class FullAdapter(MlxAdapter):
    """See Adapter. The base's arrays stay in memory, so that deactivating is exact and immediate."""

    def __init__(self, places: dict[str, Place], parameters: dict[str, mx.array], tied: Mapping[str, str]) -> None:
        self.parameters = parameters
        self._places, self._tied = places, tied
        self._base: dict[str, mx.array] = {name: place.get() for name, place in places.items()}

    def activate(self, weight: float = 1.0) -> None:
        """See Adapter."""
        self.place(self.parameters)

    def deactivate(self) -> None:
        """See Adapter."""
        for name, array in self._base.items():
            self._places[name].put(array)

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """See MlxAdapter."""
        for name, array in parameters.items():
            if name in self._places:
                self._places[name].put(array.astype(self._base[name].dtype))

    def tensors(self) -> dict[str, Floats]:
        """See Adapter; a tied head is returned under both names, as in the folder."""
        result = super().tensors()
        result.update({head: result[embedding] for head, embedding in self._tied.items()})
        return result


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> FullAdapter:
    """See adapter.py. Raises Unsupported if a weight is quantised or has another form in memory than in the folder."""
    shapes = tuner_of(plan).shapes(plan)
    pairs = [(PREFIX + head, PREFIX + embedding) for head, embedding in base.tied.items()]
    tied = {head: embedding for head, embedding in pairs if head in shapes and embedding in shapes}
    places: dict[str, Place] = {}
    for name, shape in shapes.items():
        if name in tied:
            continue
        place = base.weights.get(name.removeprefix(PREFIX))
        if place is None:
            raise Unsupported(
                msg(
                    "MLX stores {name} in another form than the model's files, so it cannot be trained here. Use "
                    "--backend torch, or --method lora.",
                    name=name.removeprefix(PREFIX),
                )
            )
        stored = place.get()
        if not mx.issubdtype(stored.dtype, mx.floating):
            raise Unsupported(
                msg(
                    "{name} is quantised, and quantised weights cannot be trained. Use --precision bf16, or --method "
                    "qlora.",
                    name=name.removeprefix(PREFIX),
                )
            )
        if tuple(stored.shape) != tuple(shape):
            raise AdapterError(
                msg(
                    "{name} has shape {shape}, but this model's is {other}: the adapter belongs to another base.",
                    name=name,
                    shape=shape,
                    other=tuple(stored.shape),
                )
            )
        places[name] = place
    for head, embedding in tied.items():
        if not np.array_equal(tensors[head], tensors[embedding]):
            raise AdapterError(
                msg("{name} differs from the embedding, but this model uses one matrix for both.", name=head)
            )
    parameters = {}
    for name in places:
        parameters[name] = mx.array(np.asarray(tensors[name], np.float32))
        mx.eval(parameters[name])  # one at a time, so that tensors computed on access are freed
    return FullAdapter(places, parameters, tied)
