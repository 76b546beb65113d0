"""Prompts on torch: the embedding returns trained rows for the ids past the vocabulary. See spec/tuners/prompt.py, virtual.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from finetune_local.spec.batch import Floats
from finetune_local.spec.numerics.prompt_encoder import encode
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners.prompt import ROWS
from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import msg
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, TorchLayers, attach_layers, bare


class TorchFunctions:
    """See Functions in spec/numerics/prompt_encoder.py."""

    def sigmoid(self, x: Any) -> Any:
        """See Functions."""
        return torch.sigmoid(x)

    def tanh(self, x: Any) -> Any:
        """See Functions."""
        return torch.tanh(x)

    def relu(self, x: Any) -> Any:
        """See Functions."""
        return torch.relu(x)

    def join(self, parts: list[Any], axis: int) -> Any:
        """See Functions."""
        return torch.cat(parts, axis)


class PromptLayer(AdapterLayer):
    """The prompt's tensors, or those of the encoder that computes it."""

    def __init__(self, given: Mapping[str, nn.Parameter], vocabulary: int) -> None:
        super().__init__()
        self._given, self._vocabulary = dict(given), vocabulary

    def rows(self) -> torch.Tensor:
        """The rows of all prompts, concatenated, (ensemble_size·length, width)."""
        if ROWS in self._given:
            return self._given[ROWS].flatten(0, -2)
        result: torch.Tensor = encode(TorchFunctions(), self._given)
        return result

    def forward(self, base: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """ids (rows, length) to vectors (rows, length, width)."""
        virtual = ids >= self._vocabulary
        if not bool(virtual.any()):
            result: torch.Tensor = base(ids)
            return result
        vectors: torch.Tensor = base(ids.masked_fill(virtual, 0))
        return vectors.index_put((virtual,), self.rows()[ids[virtual] - self._vocabulary].to(vectors.dtype))


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    embedding = bare(base.model.get_input_embeddings())
    width = int(embedding.get_parameter("weight").shape[1])
    if width != plan.targets[0].in_features:
        raise AdapterError(
            msg(
                "the prompt's vectors have {width} numbers, but this model's embeddings {hidden}. It was trained on "
                "another base.",
                width=plan.targets[0].in_features,
                hidden=width,
            )
        )
    path = next(name for name, module in base.layers.items() if module is embedding)
    return {path: PromptLayer(given, base.vocabulary)}


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchLayers:
    """See adapter.py."""
    return attach_layers(base, plan, tensors, _place)
