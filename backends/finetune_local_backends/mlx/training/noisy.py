"""NEFTune's noise on MLX: the embedding, wrapped or not, is changed while a micro-batch is read for training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from finetune_local.spec.batch import Floats
from finetune_local_backends.mlx.base.model import EMBEDDINGS, Model


def embedding(model: Model) -> Any:
    """The module at the embedding's place, wrapped or not."""
    place = next(place for name, place in model.weights.items() if name.endswith(EMBEDDINGS))
    return model.modules[id(place.owner)].get()


@contextmanager
def noisy(model: Model, noise: Floats | None) -> Iterator[None]:
    """Within it `noise` (rows, length or more, d) is added to the embedding's output; None: nothing is."""
    if noise is None:
        yield
        return
    module, added = embedding(model), mx.array(noise)
    usual: Any = type(module)

    def call(self: Any, *args: Any, **kwargs: Any) -> mx.array:
        output: mx.array = usual.__call__(self, *args, **kwargs)
        return output + added[:, : output.shape[1]].astype(output.dtype)

    module.__class__ = type(f"Noisy{usual.__name__}", (usual,), {"__call__": call})
    try:
        yield
    finally:
        module.__class__ = usual
