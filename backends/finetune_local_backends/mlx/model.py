"""A loaded base model: mlx-lm's module, its body and head, and where each weight of the folder went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from finetune_local.errors import ModelError, Unsupported
from finetune_local.spec.plan import Target

_BODIES = ("model", "transformer", "backbone")


@dataclass
class Place:
    """Where something lies in a module: an entry of a module, a list or a dict."""

    owner: Any
    key: Any

    def get(self) -> Any:
        """What lies there."""
        return self.owner[self.key]

    def put(self, value: Any) -> None:
        """Put something else there."""
        self.owner[self.key] = value


@dataclass
class Model:
    """The module and the maps into it, made before any adapter changes the tree.

    `weights` maps the names in the folder to places of arrays; `modules` maps a module's object id to its own place.
    """

    module: nn.Module
    weights: Mapping[str, Place]
    modules: Mapping[int, Place]
    longest: int | None
    tied: Mapping[str, str] = field(default_factory=dict)

    def linear(self, target: Target) -> Place:
        """The place of a target's linear layer. Raises ModelError where there is none, or of another shape."""
        weight = self.weights.get(target.module + ".weight")
        layer = weight.owner if weight else None
        if layer is None or not isinstance(layer, nn.Linear | nn.QuantizedLinear):
            raise ModelError(f"this model has no linear layer called {target.module} under MLX.")
        if shape_of(layer) != (target.out_features, target.in_features):
            raise ModelError(
                f"{target.module} is {shape_of(layer)[0]} × {shape_of(layer)[1]} in this model, but the adapter was "
                f"made for {target.out_features} × {target.in_features}. It belongs to another base."
            )
        return self.modules[id(layer)]

    @property
    def text(self) -> Any:
        """The part that computes logits: a language model inside a wrapper for images, or the module itself."""
        return getattr(self.module, "language_model", None) or self.module

    @property
    def body_name(self) -> str:
        """The attribute that holds the body. Raises Unsupported where there is none of a known name."""
        for name in _BODIES:
            if isinstance(getattr(self.text, name, None), nn.Module):
                return name
        raise Unsupported("MLX's class for this model has no separate body and head, so it cannot be trained here.")

    def hidden(self, ids: mx.array, cache: Any = None) -> mx.array:
        """The last hidden states, (rows, length, width)."""
        body = getattr(self.text, self.body_name)
        return cast(mx.array, body(ids, cache=cache))

    def head(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states, by the model's own code: caps and scales included, whatever the family."""
        text, name = self.text, self.body_name
        body = getattr(text, name)
        text[name] = _Given(body, hidden)
        try:
            return cast(mx.array, text(mx.zeros((1, 1), mx.int32)))
        finally:
            text[name] = body

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks in order."""
        layers = getattr(self.text, "layers", None) or getattr(getattr(self.text, self.body_name), "layers", [])
        return [layer for layer in layers if isinstance(layer, nn.Module)]


class _Given(nn.Module):
    """Stands in for the body and gives hidden states that are computed already."""

    def __init__(self, body: nn.Module, hidden: mx.array) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        object.__setattr__(self, "_body", body)
        object.__setattr__(self, "_hidden", hidden)

    def __call__(self, *_: Any, **__: Any) -> mx.array:
        return cast(mx.array, self._hidden)

    def __getattr__(self, key: str) -> Any:
        return getattr(object.__getattribute__(self, "_body"), key)


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear layer, quantised or not."""
    out, width = layer.weight.shape
    return int(out), int(width * 32 // layer.bits if isinstance(layer, nn.QuantizedLinear) else width)


def dense_weight(layer: nn.Module) -> mx.array:
    """A linear layer's weight, (out, in) fp32, dequantised where it is quantised."""
    weight = layer.weight
    if isinstance(layer, nn.QuantizedLinear):
        weight = mx.dequantize(weight, layer.scales, layer.biases, group_size=layer.group_size, bits=layer.bits)
    return cast(mx.array, weight.astype(mx.float32))


def walk(module: nn.Module) -> Iterator[tuple[str, Place, Any]]:
    """Every module and array below a module: its dotted path, its place and itself."""
    yield from _walk(module, "")


def _walk(owner: Any, prefix: str) -> Iterator[tuple[str, Place, Any]]:
    entries = enumerate(owner) if isinstance(owner, list | tuple) else list(owner.items())
    for key, value in entries:
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, nn.Module | mx.array):
            yield path, Place(owner, key), value
        if isinstance(value, nn.Module | dict | list | tuple):
            yield from _walk(value, path)
