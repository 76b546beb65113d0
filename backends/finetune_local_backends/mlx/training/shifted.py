"""Shifted sparse attention on MLX (LongLoRA, Chen et al. 2023, arXiv:2309.12307): during a step, a function that cuts rows into groups
replaces mlx-lm's.

Each of mlx-lm's models calls `scaled_dot_product_attention` as a name of its file, so that name is replaced there. Padding is on the
right and groups are causal, so neither the model's mask nor one for the groups is needed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from finetune_local.spec.numerics.shifted import plain_heads, runs
from finetune_local.system.errors import Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.base.model import Model, walk

FUNCTION = "scaled_dot_product_attention"
Compute = Callable[[mx.array, mx.array, mx.array], mx.array]


def check_known(model: Model) -> None:
    """Raise Unsupported if the model's code does not call the function that can be replaced."""
    if not _files(model):
        raise Unsupported(
            msg(
                "--attention shifted: MLX's class for this model computes attention in its own way, which cannot be "
                "split into groups. Use --attention full, or --backend torch."
            )
        )


@contextmanager
def shifted(model: Model, group: int) -> Iterator[None]:
    """Within this context, in forward and backward, the model attends in groups of `group` positions; 0: full attention."""
    if not group:
        yield
        return
    usual = {file: getattr(file, FUNCTION) for file in _files(model)}
    for file, function in usual.items():
        setattr(file, FUNCTION, _grouping(function, group))
    try:
        yield
    finally:
        for file, function in usual.items():
            setattr(file, FUNCTION, function)


def _files(model: Model) -> list[Any]:
    """The modules of code that define the blocks and use the function."""
    names = {
        kind.__module__
        for block in model.blocks()
        for part in [block, *(p for _, _, p in walk(block) if isinstance(p, nn.Module))]
        for kind in type(part).__mro__
    }
    files = [sys.modules[name] for name in sorted(names) if name.startswith("mlx_lm.models.")]
    return [file for file in files if hasattr(file, FUNCTION)]


def _grouping(usual: Callable[..., mx.array], group: int) -> Callable[..., mx.array]:
    def attention(
        queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any, sinks: Any = None
    ) -> mx.array:
        """queries (rows, heads, length, d), keys and values (rows, fewer heads, length, d) to (rows, heads, length, d)."""
        del cache, mask  # attention is restricted by the groups only
        if sinks is not None or queries.shape[2] != keys.shape[2]:
            raise Unsupported(
                msg(
                    "--attention shifted: this model's attention uses more than queries, keys and values of equal length "
                    "(such as sinks). Use --attention full."
                )
            )

        def compute(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            return usual(q, k, v, cache=None, scale=scale, mask="causal")

        heads, known = queries.shape[1], keys.shape[1]
        plain = plain_heads(heads)
        if known % 2:  # key heads cannot be halved along with the query heads
            keys, values = (mx.repeat(t, heads // known, axis=1) for t in (keys, values))
            known = heads
        ratio = heads // known
        parts = []
        for first, last, moved in ((0, plain, False), (plain, heads, True)):
            if first < last:
                some = slice(first // ratio, last // ratio)
                parts.append(_by_groups(compute, queries[:, first:last], keys[:, some], values[:, some], group, moved))
        return mx.concatenate(parts, axis=1)

    return attention


def _by_groups(
    compute: Compute, queries: mx.array, keys: mx.array, values: mx.array, group: int, moved: bool
) -> mx.array:
    """(rows, heads, length, d) each; the last group is padded on the right."""
    rows, heads = queries.shape[:2]
    done = []
    for start, end in runs(queries.shape[2], group, moved):
        length = end - start
        part = [t[:, :, start:end] for t in (queries, keys, values)]
        if length <= group:
            done.append(compute(*part))
            continue
        count = math.ceil(length / group)
        wide = [mx.pad(t, [(0, 0), (0, 0), (0, count * group - length), (0, 0)]) for t in part]
        cut = [t.reshape(rows, -1, count, group, t.shape[-1]).transpose(0, 2, 1, 3, 4).flatten(0, 1) for t in wide]
        mixed = compute(*cut).reshape(rows, count, heads, group, -1).transpose(0, 2, 1, 3, 4)
        done.append(mixed.flatten(2, 3)[:, :, :length])
    return done[0] if len(done) == 1 else mx.concatenate(done, axis=2)
