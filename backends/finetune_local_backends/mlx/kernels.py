"""The hot path: the low-rank product, quantised layers on a CPU, the head's log-probabilities, checkpointed blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Tree = dict[str, mx.array]


def low_rank(base: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float) -> mx.array:
    """base + scale·(x·Aᵀ)·Bᵀ in fp32, as the type of `base`; x (..., in), base (..., out), A (r, in), B (out, r)."""
    inner = x.astype(mx.float32) @ a.T
    return mx.addmm(base.astype(mx.float32), inner, b.T, alpha=scale).astype(base.dtype)


def logsumexp(logits: mx.array) -> mx.array:
    """Over the last axis of (n, vocabulary), in two levels.

    MLX's own on a CPU adds up tens of thousands of numbers in a row and is off by 1e-4; this one by 1e-6.
    """
    n, width = logits.shape
    group = 256
    whole = width // group * group
    parts = []
    if whole:
        parts.append(mx.logsumexp(logits[:, :whole].reshape(n, -1, group), axis=-1))
    if whole < width:
        parts.append(mx.logsumexp(logits[:, whole:], axis=-1, keepdims=True))
    return mx.logsumexp(mx.concatenate(parts, axis=1) if len(parts) > 1 else parts[0], axis=-1)


def logprobs(head: Callable[[mx.array], mx.array], hidden: mx.array, targets: mx.array) -> mx.array:
    """Log-probabilities (n,) fp32 of targets (n,) from hidden states (n, width)."""
    logits = head(hidden[None])[0].astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return chosen - logsumexp(logits)


def chunked_logprobs(
    head: Callable[[Tree, mx.array], mx.array], parameters: Tree, hidden: mx.array, targets: mx.array, rows: int
) -> mx.array:
    """logprobs() over chunks of `rows`, each computed again in the backward pass, so that logits never pile up.

    `parameters` are what the head trains itself (full fine-tuning), given apart so that their gradients pass through.
    """
    if hidden.shape[0] <= rows:
        return logprobs(lambda h: head(parameters, h), hidden, targets)

    def of_chunk(targets: mx.array) -> Callable[[Tree, mx.array], mx.array]:
        def again(parameters: Tree, hidden: mx.array) -> mx.array:
            return logprobs(lambda h: head(parameters, h), hidden, targets)

        return mx.checkpoint(again)

    starts = range(0, hidden.shape[0], rows)
    return mx.concatenate([of_chunk(targets[s : s + rows])(parameters, hidden[s : s + rows]) for s in starts])


class Checkpointing:
    """Within it, the given blocks keep only their inputs and are computed again in the backward pass."""

    def __init__(
        self,
        blocks: Mapping[int, nn.Module],
        current: Callable[[int], Tree],
        place: Callable[[Tree], None],
    ) -> None:
        """`current(number)` are a block's trained parameters now, `place` makes the block compute with others."""
        self._classes: list[tuple[Any, type, type]] = [
            (block, type(block), _checkpointed(n, block, current, place)) for n, block in blocks.items()
        ]

    def __enter__(self) -> None:
        for block, _, again in self._classes:
            block.__class__ = again

    def __exit__(self, *error: object) -> None:
        for block, usual, _ in self._classes:
            block.__class__ = usual


def _checkpointed(
    number: int, block: nn.Module, current: Callable[[int], Tree], place: Callable[[Tree], None]
) -> type[nn.Module]:
    usual: Any = type(block)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # Only arrays that are arguments get gradients, so parameters and hidden states must be passed as such.
        arrays = {i: a for i, a in enumerate(args) if isinstance(a, mx.array)}

        def inner(parameters: Tree, given: list[mx.array]) -> Any:
            place(parameters)
            filled = list(args)
            for index, array in zip(arrays, given, strict=True):
                filled[index] = array
            return usual.__call__(self, *filled, **kwargs)

        return mx.checkpoint(inner)(current(number), list(arrays.values()))

    return type(f"Checkpointed{usual.__name__}", (usual,), {"__call__": call})
