"""LoRA and its variants on MLX. The formulas and names are those of spec/tuners/low_rank.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetune_local.spec.batch import Batch, Floats
from finetune_local.spec.low_rank.full_copies import is_full_copy
from finetune_local.spec.low_rank.peft import A0, B0, BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, A, B, bias_name
from finetune_local.spec.low_rank.settings import SMALLEST_NORM, LowRankSettings
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.targets import is_embedding
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local_backends.mlx import kernels
from finetune_local_backends.mlx.base.model import Model, Place, dense_weight
from finetune_local_backends.mlx.layers.whole import whole_layers
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers
from finetune_local_backends.mlx.tuners import MlxAdapter


class LowRankLayer(AdapterLayer):
    """A (rank, in) and B (out, rank) beside a linear layer, and depending on the settings: the initial a0, b0 that are subtracted
    (PiSSA), a trained bias (out,), and DoRA's magnitude (out,).

    With DoRA `norm` (out,) is ‖W + s·B·A‖ by row, constant to the gradient, and `square` (out,) is ‖W‖².
    """

    shares_base = True
    a: mx.array
    b: mx.array
    a0: mx.array
    b0: mx.array
    bias: mx.array
    magnitude: mx.array
    norm: mx.array
    square: mx.array | None = None

    def __init__(self, module: str, settings: LowRankSettings, bias: str | None = None) -> None:
        """`bias` is the name of a trained bias on disk."""
        names = {"a": A, "b": B} | ({"magnitude": MAGNITUDE} if settings.use_dora else {})
        names |= {"a0": A0, "b0": B0} if settings.from_weights else {}
        own = {key: PREFIX + module + name for key, name in names.items()}
        super().__init__(module, own | ({"bias": bias} if bias else {}), settings.dropout)
        self.scale, self.dora, self.subtracts = settings.scale_of(module), settings.use_dora, settings.from_weights
        self.has_bias = bias is not None

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        return self.from_output(base, x, base(x))

    def from_output(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """The same from y = base(x)."""
        result = self._updated(base, x, y)
        return _with_bias(result, base, self.bias) if self.has_bias else result

    def update(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer; without DoRA."""
        result = kernels.low_rank(mx.zeros((), mx.float32), self.dropped(x), *self.factors(), self.scale)
        return result + (self.bias - base.bias.astype(mx.float32)) if self.has_bias else result

    def factors(self) -> tuple[mx.array, mx.array]:
        """A and B of the whole update of W."""
        return _beyond(self.a, self.b, self.a0, self.b0) if self.subtracts else (self.a, self.b)

    def _updated(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        a, b = self.factors()
        dropped = self.dropped(x)
        if not self.dora:
            return kernels.low_rank(y, dropped, a, b, self.scale)
        bias = base.bias if "bias" in base else None
        plain = y.astype(mx.float32) if bias is None else y.astype(mx.float32) - bias.astype(mx.float32)
        factor = self.magnitude / self.norm
        if self.key is None or self.rate == 0:
            result = factor * kernels.low_rank(plain, dropped, a, b, self.scale)
        else:  # as in PEFT: of the base's part only what DoRA adds reads the dropped input
            again = base(dropped).astype(mx.float32)
            again = again if bias is None else again - bias.astype(mx.float32)
            update = kernels.low_rank(mx.zeros((), mx.float32), dropped, a, b, self.scale)
            result = plain + (factor - 1) * again + factor * update
        return (result if bias is None else result + bias.astype(mx.float32)).astype(y.dtype)

    def refresh(self, base: Any) -> None:
        """DoRA's norms, without forming B·A: ‖W + sBA‖² = ‖W‖² + 2s⟨W·Aᵀ, B⟩ + s²⟨B·A·Aᵀ, B⟩ by row."""
        if not self.dora:
            return
        a, b = self.factors()
        weight = dense_weight(base)
        cross = ((weight @ a.T) * b).sum(axis=1)
        update = ((b @ (a @ a.T)) * b).sum(axis=1)
        if self.square is None:
            self.square = mx.square(weight).sum(axis=1)
        squares = self.square + 2 * self.scale * cross + self.scale**2 * update
        self.norm = mx.sqrt(mx.maximum(squares, SMALLEST_NORM**2))
        mx.eval(self.norm, self.square)


class EmbeddingLayer(AdapterLayer):
    """An embedding's rows plus s·B·A[:, token], with A (rank, vocabulary) and B (width, rank). If the embedding is also the head and the
    head is adapted, its product plus s·B·A of another pair: A (rank, width), B (vocabulary, rank)."""

    a: mx.array
    b: mx.array
    head_a: mx.array
    head_b: mx.array
    head_a0: mx.array
    head_b0: mx.array

    def __init__(self, settings: LowRankSettings, embedding: str | None, head: str | None) -> None:
        """The adapted modules: `embedding`, and `head` if it is tied."""
        names = {"a": PREFIX + embedding + EMBEDDING_A, "b": PREFIX + embedding + EMBEDDING_B} if embedding else {}
        if head:
            names |= {"head_a": PREFIX + head + A, "head_b": PREFIX + head + B}
            names |= {"head_a0": PREFIX + head + A0, "head_b0": PREFIX + head + B0} if settings.from_weights else {}
        super().__init__(embedding or head or "", names, settings.dropout)
        self.scale = settings.scale_of(embedding) if embedding else None
        self.head_scale, self.subtracts = settings.scale_of(head) if head else None, settings.from_weights

    def __call__(self, base: Any, ids: mx.array) -> mx.array:
        """ids (...) to (..., width)."""
        y: mx.array = base(ids)
        return y if self.scale is None else (y + self.update(base, ids, y)).astype(y.dtype)

    def update(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer; x are ids."""
        return mx.zeros_like(y) if self.scale is None else self.scale * (self.a.T[x] @ self.b.T)

    def as_linear(self, base: Any, x: mx.array) -> mx.array:
        """x (..., width) to (..., vocabulary); as in PEFT, an adapted embedding does not change the head."""
        y: mx.array = base.as_linear(x)
        return y if self.head_scale is None else kernels.low_rank(y, self.dropped(x), *self._head(), self.head_scale)

    def head_update(self, base: Any, x: mx.array) -> mx.array | None:
        """See AdapterLayer."""
        if self.head_scale is None:
            return None
        return kernels.low_rank(mx.zeros((), mx.float32), self.dropped(x), *self._head(), self.head_scale)

    def _head(self) -> tuple[mx.array, mx.array]:
        """A and B of the whole update of the head."""
        a, b = self.head_a, self.head_b
        return _beyond(a, b, self.head_a0, self.head_b0) if self.subtracts else (a, b)


class BiasLayer(AdapterLayer):
    """A trained bias at a module that has no update."""

    bias: mx.array

    def __init__(self, module: str, bias: str) -> None:
        super().__init__(module, {"bias": bias})

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> mx.array:
        """The module's output plus the difference of the biases."""
        return _with_bias(base(*args, **kwargs), base, self.bias)

    def update(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """See AdapterLayer."""
        return mx.broadcast_to(self.bias - base.bias.astype(mx.float32), y.shape)


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxLayers:
    """A, B and the other parameters of the settings, at every target."""
    settings = cast(LowRankSettings, plan.settings)
    biases = _biases(plan)
    at_embedding: dict[str, list[str | None]] = {}
    layers: list[tuple[Place, AdapterLayer]] = []
    for target in plan.targets:
        if target.in_features == 0 or is_full_copy(target):
            continue
        if is_embedding(target.module):
            at_embedding.setdefault(target.module, [None, None])[0] = target.module
        elif module := _tied_to(base, target.module):
            at_embedding.setdefault(module, [None, None])[1] = target.module
        else:
            layer = LowRankLayer(target.module, settings, biases.pop(target.module, None))
            layers.append((base.linear(target), layer))
    for module, (embedding, head) in at_embedding.items():
        layers.append((_embedding(base, module, plan), EmbeddingLayer(settings, embedding, head)))
    whole, heads = whole_layers(base, plan), {e: h for e, (_, h) in at_embedding.items()}
    if both := [module for module in whole if heads.get(module)]:
        raise ModelError(
            msg(
                "{name} is trained in full and the head tied to it by an update, which MLX cannot combine. Use "
                "--backend torch, or remove the --target.",
                name=both[0],
            )
        )
    layers += [(base.place_of(m), BiasLayer(m, name)) for m, name in biases.items() if m not in whole]
    return MlxLayers(tensors, layers + list(whole.values()))


def _beyond(a: mx.array, b: mx.array, a0: mx.array, b0: mx.array) -> tuple[mx.array, mx.array]:
    """A and B of B·A − B0·A0 = [B − B0, B0]·[A; A − A0]: small numbers, and exactly zero at the start, also in bf16."""
    return mx.concatenate([a, a - a0]), mx.concatenate([b - b0, b0], axis=1)


def _biases(plan: AdapterPlan) -> dict[str, str]:
    """The names on disk of the trained biases, by module."""
    modules = {target.module for target in plan.targets}
    found = (target.module for target in plan.targets if target.in_features == 0 and not is_full_copy(target))
    return {bias.removesuffix(BIAS): bias_name(bias, modules) for bias in found}


def _embedding(model: Model, module: str, plan: AdapterPlan) -> Place:
    """The place of an embedding. Raises ModelError if it is missing or its shape differs from the targets'."""
    weight = model.weights.get(module + ".weight")
    layer: Any = weight.owner if weight else None
    if not isinstance(layer, nn.Embedding):
        raise ModelError(msg("this model has no embedding called {module} under MLX.", module=module))
    at = [t for t in plan.targets if module in (t.module, _tied_to(model, t.module))]
    if any(tuple(layer.weight.shape) != (t.out_features, t.in_features) for t in at):
        raise ModelError(
            msg(
                "{module} is {rows} × {columns} in this model, but the adapter was made for {height} × {width}. It "
                "belongs to another base.",
                module=module,
                rows=layer.weight.shape[0],
                columns=layer.weight.shape[1],
                height=at[0].out_features,
                width=at[0].in_features,
            )
        )
    return model.modules[id(layer)]


def _tied_to(model: Model, head: str) -> str | None:
    """The embedding that is also the head, if the head has no matrix."""
    name = model.embedding_of(head + ".weight")
    return None if name is None else name.removesuffix(".weight")


def _with_bias(y: mx.array, base: Any, bias: mx.array) -> mx.array:
    moved: mx.array = y + (bias - base.bias.astype(mx.float32)).astype(y.dtype)
    return moved


class _Measured(AdapterLayer):
    """A layer that also sums the squared size of its update at the real tokens. `real` (rows, length, 1) bool."""

    def __init__(self, layer: LowRankLayer, real: mx.array) -> None:
        super().__init__(layer.module, {})
        self.layer, self.real, self.size = layer, real, mx.array(0.0)

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """As the layer. ‖B·i‖² = i·(BᵀB)·i with i = A·x, which needs nothing of the output's width."""
        a, b = self.layer.factors()
        inner = mx.where(self.real, x.astype(mx.float32) @ a.T, 0.0)
        self.size = self.size + ((inner @ (b.T @ b)) * inner).sum() * self.layer.scale**2
        return self.layer(base, x)


def update_sizes(model: Model, adapter: MlxAdapter, batch: Batch) -> dict[str, float]:
    """See Session. `adapter` is the active one; layers without low-rank updates are skipped."""
    real = mx.array(np.arange(batch.ids.shape[1]) < batch.lengths[:, None])[..., None]
    wrapped = adapter.wrapped if isinstance(adapter, MlxLayers) else []
    measured = [(module, _Measured(layer, real)) for module, layer in wrapped if isinstance(layer, LowRankLayer)]
    try:
        for module, layer in measured:
            module.layers.layer = layer
        mx.eval(model.hidden(mx.array(batch.ids.astype(np.int32))), [layer.size for _, layer in measured])
    finally:
        for module, layer in measured:
            module.layers.layer = layer.layer
    return {layer.module: float(np.array(layer.size)) for _, layer in measured}
