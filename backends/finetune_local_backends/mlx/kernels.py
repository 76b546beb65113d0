"""The hot path: the low-rank product, log-probabilities of the head, checkpointed blocks, the dynamic 8-bit type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from finetune_local.spec.numerics.dynamic8 import BLOCK, STEPS, levels, step_indices

Tree = dict[str, mx.array]

_LEAST = 1e-38  # the smallest range with a finite inverse; below it a GPU flushes to 0


def low_rank(base: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float) -> mx.array:
    """base + scale·(x·Aᵀ)·Bᵀ computed in fp32, in the type of `base`; x (..., in), base (..., out), A (r, in), B (out, r)."""
    inner = x.astype(mx.float32) @ a.T
    return mx.addmm(base.astype(mx.float32), inner, b.T, alpha=scale).astype(base.dtype)


def logsumexp(logits: mx.array) -> mx.array:
    """logsumexp over the last axis of (n, vocabulary), in two levels.

    MLX's on a CPU sums tens of thousands of numbers sequentially and is off by 1e-4; this one by 1e-6.
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
    """logprobs() in chunks of `rows`, each recomputed in the backward pass, so that the full logits are never in memory.

    `parameters` are the head's trained parameters (full fine-tuning), passed as arguments so that they get gradients.
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
    """Within this context the given blocks save only their inputs and are recomputed in the backward pass."""

    def __init__(
        self,
        blocks: Mapping[int, nn.Module],
        current: Callable[[int], Tree],
        place: Callable[[Tree], None],
    ) -> None:
        """`current(number)` returns a block's trained parameters, `place` makes the block use others."""
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
        # Only arguments get gradients, so parameters and hidden states must be passed as arguments.
        arrays = {i: a for i, a in enumerate(args) if isinstance(a, mx.array)}

        def inner(parameters: Tree, given: list[mx.array]) -> Any:
            place(parameters)
            filled = list(args)
            for index, array in zip(arrays, given, strict=True):
                filled[index] = array
            return usual.__call__(self, *filled, **kwargs)

        return mx.checkpoint(inner)(current(number), list(arrays.values()))

    return type(f"Checkpointed{usual.__name__}", (usual,), {"__call__": call})


def quantise_8bit(values: mx.array, signed: bool = True) -> tuple[mx.array, mx.array]:
    """Values (n,) fp32 to indices (n,) uint8 into levels() and the absolute maximum of each block, (⌈n/256⌉,).

    The same result as quantise() in spec/numerics/dynamic8.py, computed on the device."""
    blocks = mx.pad(values, (0, -values.size % BLOCK)).reshape(-1, BLOCK)
    largest = mx.abs(blocks).max(axis=1)
    ranges = mx.where(largest > _LEAST, largest, 0.0)
    normed = mx.clip(blocks * (1 / mx.maximum(largest, _LEAST))[:, None], -1, 1)
    normed = mx.where(ranges[:, None] > 0, normed, -1.0)
    places = ((normed + 1) * 0.5 * float(STEPS - 1) + 0.5).astype(mx.uint16)
    return _indices_8bit(signed)[places].reshape(-1)[: values.size], ranges


def dequantise_8bit(indices: mx.array, ranges: mx.array, signed: bool = True) -> mx.array:
    """Values (n,) fp32 from indices (n,) and ranges (⌈n/256⌉,)."""
    return _levels_8bit(signed)[indices] * mx.repeat(ranges, BLOCK)[: indices.size]


@cache
def _levels_8bit(signed: bool) -> mx.array:
    return mx.array(levels(signed))


@cache
def _indices_8bit(signed: bool) -> mx.array:
    return mx.array(step_indices(signed))
