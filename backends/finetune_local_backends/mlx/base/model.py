"""A loaded base model: mlx-lm's module, its body and head, and the place of each weight of the folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import Target
from finetune_local.spec.targets import HEADS
from finetune_local.system.errors import ModelError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.base.quantised import Nf4Linear

_BODIES = ("model", "transformer", "backbone")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")


@dataclass
class Place:
    """A place in a module tree: an entry of a module, a list or a dict."""

    owner: Any
    key: Any

    def get(self) -> Any:
        """The object at this place."""
        return self.owner[self.key]

    def put(self, value: Any) -> None:
        """Replace the object at this place."""
        self.owner[self.key] = value


@dataclass
class Model:
    """The module and maps into it, created before any adapter changes the tree.

    `weights` maps names in the folder to places of arrays; `modules` maps a module's object id to its place; `config` is the text part
    of the config in mlx-lm's form.
    """

    module: nn.Module
    weights: Mapping[str, Place]
    modules: Mapping[int, Place]
    longest: int | None
    tied: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts = [(path, place, part) for path, place, part in walk(self.module) if isinstance(part, nn.Module)]
        self._paths = {path: place for path, place, _ in parts}
        self._path_of = {id(part): path for path, _, part in parts}

    def place_of(self, name: str) -> Place:
        """The place of a module by its Hugging Face name, such as model.layers.0.self_attn. Raises ModelError.

        mlx-lm renames some modules; the place of a weight below it, whose name ends the same, determines it.
        """
        for weight, place in self.weights.items():
            tail = weight.removeprefix(name + ".")
            path = f"{self._path_of.get(id(place.owner), '')}.{place.key}".removesuffix("." + tail)
            if weight == f"{name}.{tail}" and path in self._paths:
                return self._paths[path]
        raise ModelError(
            msg(
                "this model has no module called {name} under MLX. The adapter belongs to another model, or MLX "
                "stores this part in another form; in that case use --backend torch.",
                name=name,
            )
        )

    def dense(self, name: str) -> mx.array:
        """A weight by its name in the folder, dequantised, fp32. Raises ModelError if it is missing."""
        place = self.weights.get(self.embedding_of(name) or name)
        if place is None:
            raise ModelError(
                msg(
                    "this model has no weight called {name} under MLX. The adapter belongs to another model, or MLX "
                    "stores this weight in another form; in that case use --backend torch.",
                    name=name,
                )
            )
        array: mx.array = place.get()
        return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else dense_weight(place.owner)

    def embedding_of(self, head: str) -> str | None:
        """The name of the embedding's weight if the head is tied to it and no weight `head` exists; names as in the folder."""
        if head in self.weights or head.removesuffix(".weight").rsplit(".", 1)[-1] not in HEADS:
            return None
        return self.tied.get(head) or next((name for name in self.weights if name.endswith(EMBEDDINGS)), None)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding; ids from here on are virtual tokens of an adapter. Raises Unsupported."""
        for name, place in self.weights.items():
            if name.endswith(EMBEDDINGS):
                return int(place.get().shape[0])
        raise Unsupported(
            msg("MLX's class for this model has no embedding with a known name, so no prompt can be trained.")
        )

    @property
    def embedding_scale(self) -> float:
        """The body's factor for embeddings, which transformers' embedding applies itself (Gemma); 1 for most models."""
        family = getattr(self.text.args, "model_type", "")
        if not family.startswith("gemma"):
            return 1.0
        scale = mx.array(self.text.args.hidden_size**0.5)
        return float(
            np.array(scale.astype(mx.bfloat16 if family.startswith("gemma3") else mx.float32).astype(mx.float32))
        )

    @property
    def width(self) -> int:
        """Width of the embedding's rows; 0 if no embedding has a known name."""
        return next((int(p.get().shape[1]) for name, p in self.weights.items() if name.endswith(EMBEDDINGS)), 0)

    def linear(self, target: Target) -> Place:
        """The place of a target's linear layer. A size of 0 means unknown. Raises ModelError if it is missing or has another shape."""
        weight = self.weights.get(target.module + ".weight")
        layer = weight.owner if weight else None
        if layer is None or not isinstance(layer, nn.Linear | nn.QuantizedLinear | Nf4Linear):
            raise ModelError(msg("this model has no linear layer called {module} under MLX.", module=target.module))
        height, width = shape_of(layer)
        if (height, width) != (target.out_features or height, target.in_features or width):
            raise ModelError(
                msg(
                    "{module} is {rows} × {columns} in this model, but the adapter was made for {height} × {width}. It "
                    "belongs to another base.",
                    module=target.module,
                    rows=height,
                    columns=width,
                    height=target.out_features,
                    width=target.in_features,
                )
            )
        return self.modules[id(layer)]

    def check_length(self, length: int) -> None:
        """Raise Unsupported if a text is longer than mlx-lm's class computes correctly."""
        if self.longest is not None and length > self.longest:
            raise Unsupported(
                msg(
                    "a text of {tokens} tokens is longer than this model's sliding window of {window}, which MLX's class "
                    "for it does not implement. Lower --max-length or use --backend torch.",
                    tokens=length,
                    window=self.longest,
                )
            )

    @property
    def text(self) -> Any:
        """The module that computes logits: the language model inside a multimodal wrapper, or the module itself."""
        return getattr(self.module, "language_model", None) or self.module

    @property
    def body_name(self) -> str:
        """The name of the body's attribute. Raises Unsupported if none of the known names exists."""
        for name in _BODIES:
            if isinstance(getattr(self.text, name, None), nn.Module):
                return name
        raise Unsupported(
            msg("MLX's class for this model has no separate body and head, so it cannot be trained here.")
        )

    def hidden(self, ids: mx.array, cache: Any = None) -> mx.array:
        """The last hidden states, (rows, length, width)."""
        body = getattr(self.text, self.body_name)
        return cast(mx.array, body(ids, cache=cache))

    def head(self, hidden: mx.array) -> mx.array:
        """Logits of hidden states by the model's own code, which includes its family's caps and scales."""
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
    """A replacement for the body that returns precomputed hidden states."""

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
    if isinstance(layer, Nf4Linear):
        return layer.out_features, layer.in_features
    out, width = layer.weight.shape
    return int(out), int(width * 32 // layer.bits if isinstance(layer, nn.QuantizedLinear) else width)


def dense_weight(layer: nn.Module) -> mx.array:
    """A linear layer's weight (out, in), fp32, dequantised if necessary."""
    if isinstance(layer, Nf4Linear):
        return layer.dense(mx.float32)
    weight = layer.weight
    if isinstance(layer, nn.QuantizedLinear):
        weight = mx.dequantize(weight, layer.scales, layer.biases, group_size=layer.group_size, bits=layer.bits)
    return cast(mx.array, weight.astype(mx.float32))


def walk(module: nn.Module) -> Iterator[tuple[str, Place, Any]]:
    """Every module and array below a module, as (dotted path, place, object)."""
    yield from _walk(module, "")


def _walk(owner: Any, prefix: str) -> Iterator[tuple[str, Place, Any]]:
    entries = enumerate(owner) if isinstance(owner, list | tuple) else list(owner.items())
    for key, value in entries:
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, nn.Module | mx.array):
            yield path, Place(owner, key), value
        if isinstance(value, nn.Module | dict | list | tuple):
            yield from _walk(value, path)


def embedding(model: Model) -> Any:
    """The embedding module, wrapped or not."""
    place = next(place for name, place in model.weights.items() if name.endswith(EMBEDDINGS))
    return model.modules[id(place.owner)].get()


@contextmanager
def noisy(model: Model, noise: Floats | None) -> Iterator[None]:
    """Within this context `noise` (rows, length or more, d) is added to the embedding's output, unless it is None."""
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
