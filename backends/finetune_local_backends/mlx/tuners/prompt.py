"""Prompts on MLX: the embedding returns trained rows for the ids past the vocabulary. See spec/tuners/prompt.py, virtual.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from finetune_local.spec.batch import Floats
from finetune_local.spec.numerics.prompt_encoder import encode
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners.prompt import ROWS
from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.base.model import EMBEDDINGS, Model
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers


class MlxFunctions:
    """See Functions in spec/numerics/prompt_encoder.py."""

    def sigmoid(self, x: Any) -> Any:
        """See Functions."""
        return mx.sigmoid(x)

    def tanh(self, x: Any) -> Any:
        """See Functions."""
        return mx.tanh(x)

    def relu(self, x: Any) -> Any:
        """See Functions."""
        return mx.maximum(x, 0)

    def join(self, parts: list[Any], axis: int) -> Any:
        """See Functions."""
        return mx.concatenate(parts, axis)


class PromptLayer(AdapterLayer):
    """The prompt's tensors, or those of the encoder that computes it."""

    def __init__(self, module: str, names: list[str], vocabulary: int, scale: float) -> None:
        """`scale` is the factor that the model applies to all embeddings afterwards; the rows are values after that factor."""
        super().__init__(module, {name: name for name in names})
        self._given: dict[str, mx.array] = {}
        self._vocabulary, self._scale = vocabulary, scale

    def fill(self, parameters: Mapping[str, mx.array]) -> None:
        """See AdapterLayer."""
        self._given.update({name: parameters[name] for name in self.names if name in parameters})

    def rows(self) -> mx.array:
        """The rows of all prompts, concatenated, (ensemble_size·length, width)."""
        if ROWS in self._given:
            return self._given[ROWS].flatten(0, -2)
        result: mx.array = encode(MlxFunctions(), self._given)
        return result

    def __call__(self, base: Any, ids: mx.array) -> mx.array:
        """ids (rows, length) to vectors (rows, length, width)."""
        virtual = ids >= self._vocabulary
        if not bool(virtual.any().item()):
            result: mx.array = base(ids)
            return result
        vectors: mx.array = base(mx.where(virtual, 0, ids))
        trained = (self.rows() / self._scale)[mx.maximum(ids - self._vocabulary, 0)]
        return mx.where(virtual[..., None], trained.astype(vectors.dtype), vectors)


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxLayers:
    """One layer, at the embedding."""
    vocabulary = base.vocabulary
    name, place = next((name, place) for name, place in base.weights.items() if name.endswith(EMBEDDINGS))
    width = int(place.get().shape[1])
    if width != plan.targets[0].in_features:
        raise AdapterError(
            msg(
                "the prompt's vectors have {width} numbers, but this model's embeddings {hidden}. It was trained on "
                "another base.",
                width=plan.targets[0].in_features,
                hidden=width,
            )
        )
    layer = PromptLayer(name.removesuffix(".weight"), list(tensors), vocabulary, base.embedding_scale)
    return MlxLayers(tensors, [(base.modules[id(place.owner)], layer)])
