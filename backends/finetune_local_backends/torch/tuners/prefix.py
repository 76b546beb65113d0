"""Prefix tuning on torch. The formulas and names are those of spec/tuners/prefix.py; the folded form is PEFT's.

Where PEFT fills a cache with the prefix, here each block's attention gets a cache that prepends the prefix to its current keys and
values. So a decoder's cache contains the text alone, wherever its padding is; blocks recomputed by gradient checkpointing see the
prefix again; and a row's result does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from finetune_local.spec.base.config import windows
from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.targets import block_of
from finetune_local.spec.tuners import tuner_of
from finetune_local.spec.tuners.prefix import EMBEDDING, INNER, INNER_BIAS, OUTER, OUTER_BIAS, ROWS, key_width
from finetune_local.system.errors import AdapterError, ModelError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, TorchLayers, attach_layers, bare, module_at


class _Places:
    """The positions of the tokens, (rows or 1, length), counted without the prefix."""

    now: torch.Tensor


class RotaryLayer(AdapterLayer):
    """The rotary embeddings of the text's tokens, whose positions start after the prefix."""

    def __init__(self, count: int, places: _Places) -> None:
        super().__init__()
        self.count, self.places = count, places

    def forward(self, base: nn.Module, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the module, for positions shifted by `count`."""
        self.places.now = position_ids
        return base(x, position_ids + self.count, *args, **kwargs)


class AttentionLayer(AdapterLayer):
    """A block's attention with the prefix. `parts` are the parameters by role; `window` as in windows()."""

    def __init__(
        self, parts: Mapping[str, nn.Parameter], make: Callable[[Mapping[str, nn.Parameter]], torch.Tensor],
        count: int, places: _Places, window: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.parts, self.make, self.count, self.places, self.window = dict(parts), make, count, places, window

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As the module, with its keywords attention_mask and past_key_values replaced."""
        if not {"attention_mask", "past_key_values"} <= kwargs.keys():
            raise Unsupported(
                msg(
                    "a {kind} uses its cache in a way that prefix tuning does not support here. Use --method prompt or "
                    "lora.",
                    kind=type(base).__name__,
                )
            )
        first = self._first_seen()
        rows = self.make(self.parts)[first:]
        cache = _Prefixed(kwargs["past_key_values"], rows)
        mask = self._mask(kwargs["attention_mask"], first)
        result = base(*args, **{**kwargs, "past_key_values": cache, "attention_mask": mask})
        if not cache.read:
            raise Unsupported(
                msg(
                    "a {kind} ignores the prefix, so training it would change nothing. Use --method prompt or lora.",
                    kind=type(base).__name__,
                )
            )
        return result

    def _first_seen(self) -> int:
        """The first position of the prefix inside any token's window."""
        if self.window is None:
            return 0
        return min(self.count, max(0, self.count + int(self.places.now.min()) - self.window + 1))

    def _mask(self, given: torch.Tensor | None, first: int) -> torch.Tensor | None:
        """The text's mask (rows or 1, 1, length, keys) with columns for the prefix; None: plain causal attention."""
        now = self.places.now
        length, count = now.shape[-1], self.count - first
        if given is None:
            if length == 1:
                return None
            given = torch.ones(length, length, dtype=torch.bool, device=now.device).tril()[None, None]
        seen = torch.ones(now.shape[0], 1, length, count, dtype=torch.bool, device=now.device)
        if self.window is not None:
            own = torch.arange(first, self.count, device=now.device)
            seen = (self.count + now[:, None, :, None] - own) < self.window
        if given.dtype != torch.bool:
            lowest = torch.finfo(given.dtype).min
            seen = torch.zeros(seen.shape, dtype=given.dtype, device=now.device).masked_fill(~seen, lowest)
        rows = max(given.shape[0], seen.shape[0])
        return torch.cat([part.expand(rows, given.shape[1], -1, -1) for part in (seen, given)], -1)


class _Prefixed:
    """A cache as an attention sees it: the prefix's `rows` (n, 2·k), then its contents, if any."""

    def __init__(self, inner: Any, rows: torch.Tensor) -> None:
        self.inner, self.rows, self.read = inner, rows, False

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Keys and values (rows, heads, length, d) of the new tokens to those of the prefix and all tokens."""
        self.read = True
        if self.inner is not None:
            keys, values = self.inner.update(keys, values, *args, **kwargs)
        own = zip(self.rows.chunk(2, dim=-1), (keys, values), strict=True)
        return tuple(torch.cat([_heads(mine, text), text], 2) for mine, text in own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _heads(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(n, k) to (rows, heads, n, d), the same for all rows of a batch."""
    batch, heads, _, width = like.shape
    return rows.to(like.dtype).view(len(rows), heads, width).transpose(0, 1).expand(batch, -1, -1, -1)


def _slice(layer: int, width: int) -> Callable[[Mapping[str, nn.Parameter]], torch.Tensor]:
    """A layer's part of the folded form: (n, L·2·k) to (n, 2·k)."""
    return lambda parts: parts["rows"][:, 2 * width * layer : 2 * width * (layer + 1)]


def _projected(parts: Mapping[str, nn.Parameter]) -> torch.Tensor:
    """A layer's part (n, 2·k) from the training form; see fold()."""
    inner = torch.tanh(nn.functional.linear(parts["embedding"], parts["inner"], parts["inner_bias"]))
    return nn.functional.linear(inner, parts["outer"], parts["outer_bias"])


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    text = base.model.config.get_text_config()
    blocks, count = int(text.num_hidden_layers), tuner_of(plan).virtual_tokens(plan)
    if len(plan.targets) != blocks:
        raise AdapterError(
            msg(
                "the prefix is for {layers} layers, but this model has {count}: it belongs to another base.",
                layers=len(plan.targets),
                count=blocks,
            )
        )
    rotary = [name for name in base.layers if name.endswith("rotary_emb") and block_of(name) is None]
    if len(rotary) != 1:
        raise Unsupported(
            msg(
                "models of type '{family}' count positions in a way that prefix tuning does not support here. Use "
                "--method prompt or lora.",
                family=text.model_type,
            )
        )
    places, far = _Places(), windows(text.to_dict(), blocks)
    layers: dict[str, AdapterLayer] = {rotary[0]: RotaryLayer(count, places)}
    for layer, target in enumerate(plan.targets):
        _check(base, target)
        if ROWS in given:
            parts, make = {"rows": given[ROWS]}, _slice(layer, key_width(plan))
        else:
            parts = {"embedding": given[EMBEDDING], "inner": given[INNER], "inner_bias": given[INNER_BIAS]}
            parts |= {"outer": given[target.module + OUTER], "outer_bias": given[target.module + OUTER_BIAS]}
            make = _projected
        layers[target.module] = AttentionLayer(parts, make, count, places, far[layer])
    return layers


def _check(base: Base, target: Target) -> None:
    """Raise ModelError if a block's keys and the prefix differ in width."""
    keys = getattr(bare(module_at(base, target.module)), "k_proj", None)
    found = getattr(bare(keys) if isinstance(keys, nn.Module) else None, "out_features", None)
    expected = target.in_features * target.out_features
    if found not in (None, expected):
        raise ModelError(
            msg(
                "keys of {module} are {width} wide in the base, but the prefix was made for {expected}.",
                module=target.module,
                width=found,
                expected=expected,
            )
        )


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchLayers:
    """See adapter.py."""
    return attach_layers(base, plan, tensors, _place)
