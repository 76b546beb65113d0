"""Prefix tuning on MLX. The formulas and names are those of spec/tuners/prefix.py and of PEFT.

As on torch, each block's attention gets a cache that prepends the prefix to its current keys and values: a decoder's caches
contain the texts alone, and blocks recomputed by gradient checkpointing see the prefix again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from finetune_local.spec.base.config import windows
from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import tuner_of
from finetune_local.spec.tuners.prefix import EMBEDDING, INNER, INNER_BIAS, OUTER, OUTER_BIAS, ROWS, key_width
from finetune_local.system.errors import AdapterError, ModelError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.base.model import Model, shape_of
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers


class AttentionLayer(AdapterLayer):
    """A block's attention with the prefix: a layer's part of `rows` (n, L·2·k), or the output of the training form's MLP.

    `window` is the layer's window in positions, the current one included; None for full attention.
    """

    rows: mx.array
    embedding: mx.array
    inner: mx.array
    inner_bias: mx.array
    outer: mx.array
    outer_bias: mx.array

    def __init__(self, module: str, names: Mapping[str, str], part: slice, count: int, window: int | None) -> None:
        super().__init__(module, names)
        self.part, self.count, self.window = part, count, window

    def __call__(self, base: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """x (rows, length, width) to the same shape."""
        first = self._first_seen(cache)
        seen = _Prefixed(cache, self._made()[first:], self.count)
        result: mx.array = base(x, self._mask(mask, x.shape[1], cache, first), seen)
        if not seen.read:
            raise Unsupported(
                msg(
                    "MLX's {kind} ignores the prefix, so training it would change nothing. Use --method prompt or lora, "
                    "or --backend torch.",
                    kind=type(base).__name__,
                )
            )
        return result

    def _made(self) -> mx.array:
        """(n, 2·k): keys, then values; see fold()."""
        if "rows" in self.names:
            return self.rows[:, self.part]
        inner = mx.tanh(mx.addmm(self.inner_bias, self.embedding, self.inner.T))
        return mx.addmm(self.outer_bias, inner, self.outer.T)

    def _first_seen(self, cache: Any) -> int:
        """The first position of the prefix inside any token's window."""
        if self.window is None:
            return 0
        return min(self.count, max(0, self.count + int(np.array(_past(cache)).min()) - self.window + 1))

    def _mask(self, given: Any, length: int, cache: Any, first: int) -> Any:
        """The text's mask with columns for the prefix: booleans (…, length, keys), "causal", or None for no mask."""
        past = _past(cache)
        if not isinstance(given, mx.array):
            # "causal" counts from the end, so every query sees the whole prefix; only valid if all of it is in the window.
            if length == 1 or self.window is None or self.count - first + past + length <= self.window:
                return given
            given = mx.arange(past + length) <= (past + mx.arange(length))[:, None]
        if given.ndim == 1:  # of one query
            given = given[None]
        own = mx.arange(first, self.count)
        seen = mx.ones((length, len(own)), mx.bool_)
        if self.window is not None:
            now = mx.arange(length)[:, None] + (past if isinstance(past, int) else past[:, None, None, None])
            seen = (self.count + now - own) < self.window
        if given.dtype != mx.bool_:
            seen = mx.where(seen, mx.array(0, given.dtype), mx.array(-mx.inf, given.dtype))
        rank = max(given.ndim, seen.ndim)
        parts = [part.reshape(*([1] * (rank - part.ndim)), *part.shape) for part in (seen, given)]
        heads = [max(a, b) for a, b in zip(parts[0].shape[:-1], parts[1].shape[:-1], strict=True)]
        return mx.concatenate([mx.broadcast_to(part, (*heads, part.shape[-1])) for part in parts], -1)


class _Prefixed:
    """A cache as an attention sees it: the prefix's `rows` (n, 2·k), then its contents, if any."""

    def __init__(self, inner: Any, rows: mx.array, count: int) -> None:
        self.inner, self.rows, self.count, self.read = inner, rows, count, False

    @property
    def offset(self) -> Any:
        """The position of the next token, which is after the prefix."""
        return self.count + _past(self.inner)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values (rows, heads, length, d) of the new tokens to those of the prefix and all tokens."""
        self.read = True
        if self.inner is not None:
            keys, values = self.inner.update_and_fetch(keys, values)
        mine, theirs = mx.split(self.rows, 2, axis=-1)
        return _before(mine, keys), _before(theirs, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _past(cache: Any) -> Any:
    """The number of text tokens in a cache: a number, or (rows,) if the rows differ in length."""
    return 0 if cache is None else cache.offset


def _before(rows: mx.array, text: mx.array) -> mx.array:
    """Prepend (n, k) to (rows, heads, length, d), the same for all rows of a batch."""
    batch, heads, _, width = text.shape
    own = rows.astype(text.dtype).reshape(len(rows), heads, width).transpose(1, 0, 2)
    return mx.concatenate([mx.broadcast_to(own[None], (batch, *own.shape)), text], axis=2)


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxLayers:
    """A layer at every block's attention."""
    blocks, count, width = len(base.blocks()), tuner_of(plan).virtual_tokens(plan), 2 * key_width(plan)
    if len(plan.targets) != blocks:
        raise AdapterError(
            msg(
                "the prefix is for {layers} layers, but this model has {count}: it belongs to another base.",
                layers=len(plan.targets),
                count=blocks,
            )
        )
    far = windows(base.config, blocks)
    layers = []
    for number, target in enumerate(plan.targets):
        _check(base, target)
        if ROWS in tensors:
            names = {"rows": ROWS}
        else:
            names = {"embedding": EMBEDDING, "inner": INNER, "inner_bias": INNER_BIAS}
            names |= {"outer": target.module + OUTER, "outer_bias": target.module + OUTER_BIAS}
        part = slice(width * number, width * (number + 1))
        layer = AttentionLayer(target.module, names, part, count, far[number])
        layers.append((base.place_of(target.module), layer))
    return MlxLayers(tensors, layers)


def _check(model: Model, target: Target) -> None:
    """Raise ModelError if a block's keys and the prefix differ in width."""
    keys, expected = model.weights.get(target.module + ".k_proj.weight"), target.in_features * target.out_features
    if keys is not None and shape_of(keys.owner)[0] != expected:
        raise ModelError(
            msg(
                "keys of {module} are {width} wide in the base, but the prefix was made for {expected}.",
                module=target.module,
                width=shape_of(keys.owner)[0],
                expected=expected,
            )
        )
