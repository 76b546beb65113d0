"""Modules of a base wrapped for adapter layers.

A tuner that works at modules (linear layers, embeddings, norms, a block's attention or MLP) defines AdapterLayers and an attach()
that maps modules to layers:

    class Scaled(AdapterLayer):
        scale: mx.array

        def __init__(self, module: str) -> None:
            super().__init__(module, {"scale": PREFIX + module + ".scale"})

        def __call__(self, base, x):
            return base(x) * self.scale.astype(x.dtype)

    def attach(base, plan, tensors):
        return MlxLayers(tensors, [(base.linear(t), Scaled(t.module)) for t in plan.targets])

`MlxLayers` does the rest. Without an active layer a wrapped module behaves like the module itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetune_local.spec.batch import Floats
from finetune_local.spec.targets import block_of
from finetune_local.system.errors import Unsupported
from finetune_local_backends.adapter import ActiveLayers, LayeredAdapter, shared_with
from finetune_local_backends.mlx.base.model import Place
from finetune_local_backends.mlx.tuners import MlxAdapter
from finetune_local_backends.multi_adapter import MIXED, Rows


class AdapterLayer:
    """One adapter's layer at one wrapped module.

    `names` maps attributes with arrays to their names on disk; several layers may share a tensor. `rate` is the dropout probability,
    `key` the random key of this micro-batch, None if dropout is off.
    """

    shares_base = False
    """Whether from_output() is implemented: the output can be computed from the module's output."""

    def __init__(self, module: str, names: Mapping[str, str], rate: float = 0.0) -> None:
        """`module` is the Hugging Face name of its module."""
        self.module, self.names, self.rate = module, dict(names), rate
        self.key: mx.array | None = None

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """The output of the module `base` with this adapter."""
        raise NotImplementedError

    def as_linear(self, base: Any, x: mx.array) -> mx.array:
        """At an embedding used as a tied head: (..., width) to (..., vocabulary); by default the base's product."""
        result: mx.array = base.as_linear(x)
        return result

    def from_output(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """__call__() given y = base(x), which is computed once for the rows of several adapters."""
        raise NotImplementedError

    def update(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """The update added to y = base(x), in the output's shape; for tuners whose adapters can be summed."""
        raise NotImplementedError

    def head_update(self, base: Any, x: mx.array) -> mx.array | None:
        """The update for as_linear(), fp32, or None."""
        return None

    def fill(self, parameters: Mapping[str, mx.array]) -> None:
        """Set those of its arrays that are in `parameters`."""
        for attribute, name in self.names.items():
            if name in parameters:
                setattr(self, attribute, parameters[name])

    def refresh(self, base: Any) -> None:
        """Recompute cached values derived from the arrays and the base. Called after the arrays have changed."""

    def penalty(self) -> mx.array | None:
        """This layer's term of the tuner's regularisation, a scalar, or None."""
        return None

    def dropped(self, x: mx.array) -> mx.array:
        """x with a share of its numbers zeroed and the rest scaled up; the same again for the same key."""
        if self.key is None or self.rate == 0:
            return x
        kept = mx.random.bernoulli(1 - self.rate, x.shape, key=self.key)
        return mx.where(kept, x / (1 - self.rate), mx.zeros((), x.dtype))


class SummedLayer(AdapterLayer):
    """Several adapters' layers at one module, or one with a weight other than 1: y + Σ weight · update."""

    def __init__(self, parts: Sequence[tuple[AdapterLayer, float]]) -> None:
        super().__init__(parts[0][0].module, {})
        self._parts = list(parts)

    def __call__(self, base: Any, x: mx.array) -> mx.array:
        """x to the output's shape."""
        y: mx.array = base(x)
        return _added(y, [layer.update(base, x, y) * weight for layer, weight in self._parts])

    def as_linear(self, base: Any, x: mx.array) -> mx.array:
        """See AdapterLayer."""
        found = [(layer.head_update(base, x), weight) for layer, weight in self._parts]
        return _added(base.as_linear(x), [update * weight for update, weight in found if update is not None])


def _added(y: mx.array, updates: Sequence[mx.array]) -> mx.array:
    if not updates:
        return y
    total = mx.stack([update.astype(mx.float32) for update in updates]).sum(axis=0)
    return (y.astype(mx.float32) + total).astype(y.dtype)


class WrappedModule(nn.Module):
    """A module of the base with adapter layers. All other attributes are the module's."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base = base
        self.layers: ActiveLayers[AdapterLayer] = ActiveLayers(SummedLayer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, or that of the active layer."""
        base: Any = self.base
        layer = self.layers.layer
        return base(*args, **kwargs) if layer is None else layer(base, *args, **kwargs)

    def as_linear(self, x: mx.array) -> mx.array:
        """An embedding used as the head."""
        base: Any = self.base
        layer = self.layers.layer
        result: mx.array = base.as_linear(x) if layer is None else layer.as_linear(base, x)
        return result

    def __getattr__(self, key: str) -> Any:
        """The module's attribute: a model's code reads attributes of its modules."""
        if key in self:
            return self[key]
        if "base" not in self:
            raise AttributeError(key)
        return getattr(self["base"], key)


class MlxLayers(LayeredAdapter[mx.array, AdapterLayer], MlxAdapter):
    """See LayeredAdapter and MlxAdapter."""

    wrapper = WrappedModule

    def __init__(self, tensors: Mapping[str, Floats], layers: Sequence[tuple[Place, AdapterLayer]]) -> None:
        """`layers` are pairs of a module's place and its layer, one layer per place."""
        # In one order wherever they come from: the gradient's norm is a sum, and resuming must be exact.
        parameters: dict[str, mx.array] = {}
        for name in sorted(tensors):
            same = next((other for other in shared_with(name, tensors, tensors) if other in parameters), None)
            parameters[name] = parameters[same] if same else mx.array(np.asarray(tensors[name], np.float32))
        super().__init__(parameters, layers)
        self._readers: dict[str, list[AdapterLayer]] = {}
        for _, layer in self.wrapped:
            for name in layer.names.values():
                self._readers.setdefault(name, []).append(layer)
        self.after_step()

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """See MlxAdapter."""
        layers = {id(layer): layer for name in parameters for layer in self._readers.get(name, ())}
        for layer in layers.values():
            layer.fill(parameters)

    def after_step(self) -> None:
        """See Adapter."""
        for module, layer in self.wrapped:
            layer.fill(self.parameters)
            layer.refresh(module.base)

    def dropout(self, key: mx.array | None) -> None:
        """See MlxAdapter. Each layer's key is drawn once, so that a checkpointed block computed again drops the same."""
        keys = None if key is None else mx.random.split(key, len(self.wrapped))
        for index, (_, layer) in enumerate(self.wrapped):
            layer.key = None if keys is None else keys[index]

    def penalty(self) -> mx.array | None:
        """See MlxAdapter: the sum over the layers that have one."""
        parts = [part for _, layer in self.wrapped if (part := layer.penalty()) is not None]
        return mx.stack(parts).sum() if parts else None

    def used(self) -> dict[int | None, list[str]]:
        """See MlxAdapter: a tensor that several blocks share is named in each of them."""
        result: dict[int | None, dict[str, None]] = {}
        for _, layer in self.wrapped:
            result.setdefault(block_of(layer.module + "."), {}).update(dict.fromkeys(layer.names.values()))
        return {block: list(names) for block, names in result.items()}


class SplitLayer(AdapterLayer):
    """See SplitLayer in multi_adapter.py."""

    def __init__(self, layer: AdapterLayer, rows: Rows) -> None:
        super().__init__(layer.module, {})
        self._rows = rows
        self.parts: dict[int, AdapterLayer] = {}

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the base once for all rows if every layer can use its output, otherwise once per part."""
        rows = self._rows
        if not any(isinstance(a, mx.array) and a.shape[:1] == (rows.total,) for a in (*args, *kwargs.values())):
            raise Unsupported(MIXED)
        y = base(*args, **kwargs) if all(layer.shares_base for layer in self.parts.values()) else None
        done = []
        for part, owner in zip(rows.slices, rows.owners, strict=True):
            layer = self.parts.get(owner)
            if y is not None:
                done.append(y[part] if layer is None else layer.from_output(base, args[0][part], y[part]))
                continue
            some, more = _of_rows(args, part, rows.total), _of_rows(kwargs, part, rows.total)
            done.append(base(*some, **more) if layer is None else layer(base, *some, **more))
        return mx.concatenate(done)


def _of_rows(value: Any, part: slice, total: int) -> Any:
    """The arguments with every array that has one entry per row cut to these rows."""
    if isinstance(value, mx.array):
        return value[part] if value.shape[:1] == (total,) else value
    if isinstance(value, tuple | list):
        return type(value)(_of_rows(item, part, total) for item in value)
    if isinstance(value, dict):
        return {key: _of_rows(item, part, total) for key, item in value.items()}
    return value
