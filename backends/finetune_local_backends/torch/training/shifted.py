"""Shifted sparse attention on torch (LongLoRA, Chen et al. 2023, arXiv:2309.12307): rows are cut into groups, which the usual attention
function computes as separate rows.

The function is registered with transformers, and a model uses it only within `shifted()`. Padding is on the right and groups are
causal, so neither the model's mask nor one for the groups is needed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from finetune_local.spec.numerics.shifted import plain_heads, runs
from finetune_local.system.errors import Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.torch.base.load import Base

NAME = "finetune_local_shifted"
Inner = Callable[..., tuple[torch.Tensor, Any]]


@dataclass
class _Now:
    """The state of the registered function, one per process. `usual` is the name of the function it replaces."""

    group: int = 0
    usual: str = ""
    calls: int = 0


_now = _Now()


@contextmanager
def shifted(base: Base, group: int) -> Iterator[None]:
    """Within this context, in forward and backward, the model attends in groups of `group` positions; 0: full attention."""
    if not group:
        yield
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    config = base.model.config
    before = config._attn_implementation
    _now.group, _now.usual, _now.calls = group, config.get_text_config()._attn_implementation or before, 0
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def check_known(base: Base) -> None:
    """Raise Unsupported if the model's code does not call the function; tested on a few tokens."""
    with shifted(base, 2):
        base.body(input_ids=torch.arange(4, device=base.place)[None], use_cache=False)
    if not _now.calls:
        raise Unsupported(
            msg(
                "--attention shifted: models of type '{family}' compute attention in their own way, which cannot be "
                "split into groups. Use --attention full.",
                family=base.model.config.model_type,
            )
        )


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """query (rows, heads, length, d), key and value (rows, fewer heads, length, d) to (rows, length, heads, d)."""
    del attention_mask  # attention is restricted by the groups only
    if query.shape[2] != key.shape[2] or any(more.get(name) is not None for name in ("position_bias", "s_aux")):
        raise Unsupported(
            msg(
                "--attention shifted: this model's attention uses more than queries, keys and values of equal length "
                "(such as sinks, or a distance bias). Use --attention full."
            )
        )
    _now.calls += 1
    inner = _inner(module)

    def compute(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ratio = q.shape[1] // k.shape[1]
        heads = SimpleNamespace(
            num_key_value_groups=ratio, is_causal=True, training=module.training, head_dim=q.shape[-1]
        )
        mask = _causal(q) if _now.usual == "eager" else None
        result, _ = inner(heads, q, k, v, mask, dropout=dropout, scaling=scaling, **more)
        return result

    heads, keys = query.shape[1], key.shape[1]
    plain = plain_heads(heads)
    if keys % 2:  # key heads cannot be halved along with the query heads
        key, value = (t.repeat_interleave(heads // keys, 1) for t in (key, value))
        keys = heads
    ratio = heads // keys
    parts = []
    for first, last, moved in ((0, plain, False), (plain, heads, True)):
        if first < last:
            some = slice(first // ratio, last // ratio)
            parts.append(_by_groups(compute, query[:, first:last], key[:, some], value[:, some], _now.group, moved))
    return torch.cat(parts, 2), None


def _by_groups(
    compute: Callable[..., torch.Tensor],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    group: int,
    moved: bool,
) -> torch.Tensor:
    """(rows, heads, length, d) to (rows, length, heads, d); the last group is padded on the right."""
    rows, heads = query.shape[:2]
    done = []
    for start, end in runs(query.shape[2], group, moved):
        length = end - start
        part = [t[:, :, start:end] for t in (query, key, value)]
        if length <= group:
            done.append(compute(*part))
            continue
        count = math.ceil(length / group)
        wide = [functional.pad(t, (0, 0, 0, count * group - length)) for t in part]
        cut = [t.reshape(rows, -1, count, group, t.shape[-1]).transpose(1, 2).flatten(0, 1) for t in wide]
        done.append(compute(*cut).reshape(rows, count * group, heads, -1)[:, :length])
    return done[0] if len(done) == 1 else torch.cat(done, 1)


def _inner(module: torch.nn.Module) -> Inner:
    """The function that the model would use; "eager" attention is defined in the model's file."""
    from transformers import AttentionInterface

    if _now.usual != "eager":
        usual: Inner = AttentionInterface()[_now.usual]
        return usual
    eager: Inner = sys.modules[type(module).__module__].eager_attention_forward
    return eager


def _causal(query: torch.Tensor) -> torch.Tensor:
    """The causal mask (1, 1, length, length) that eager attention adds to the scores."""
    length = query.shape[2]
    least = torch.finfo(query.dtype).min
    return torch.full((1, 1, length, length), least, dtype=query.dtype, device=query.device).triu_(1)


def _no_mask(*_: Any, **__: Any) -> None:
    return None
