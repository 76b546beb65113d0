"""Examples to batches: the order of an epoch, and micro-batches by token budget. Numpy only; the same input, the same output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from finetune_local.data.dataset.store import Row
from finetune_local.spec.batch import Batch

Indices = npt.NDArray[np.int64]

MEGABATCH = 8
"""Batches whose examples are sorted by length together: enough that padding is small, few enough that order stays random."""


class Examples(Protocol):
    """What batches are made from: a Dataset, or rows in memory."""

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each example's longest row."""
        ...

    def example(self, index: int) -> Sequence[Row]:
        """The rows of an example."""
        ...


class Rows:
    """Rows in memory, each an example."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self.lengths = np.array([len(row.ids) for row in rows], np.int32)

    def example(self, index: int) -> Sequence[Row]:
        """See Examples."""
        return self._rows[index : index + 1]


def epoch_batches(
    lengths: npt.NDArray[np.integer], batch_size: int, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Indices of the examples in each batch of an epoch: every example exactly once, a last short batch kept.

    They are shuffled by seed and epoch, sorted by length within megabatches of 8 batches, and the batches shuffled again.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)).astype(np.int64)
    batches: list[Indices] = []
    size = batch_size * MEGABATCH
    for start in range(0, len(order), size):
        group = order[start : start + size]
        group = group[np.argsort(lengths[group], kind="stable")]
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Number of batches of an epoch of n examples."""
    return math.ceil(n / batch_size)


def micro_batches(examples: Examples, indices: Sequence[int] | Indices, max_tokens: int) -> list[Batch]:
    """One batch in pieces of at most `max_tokens` tokens, padding counted; a larger example is a piece by itself.

    No piece splits an example. The longest come first, so that a lack of memory shows at the start of the step.
    """
    return [batch for _, batch in batches_for_scoring(examples, indices, max_tokens)]


def batches_for_scoring(
    examples: Examples, indices: Sequence[int] | Indices, max_tokens: int
) -> Iterator[tuple[Indices, Batch]]:
    """Pieces as of micro_batches, each with the indices of its examples, made one after the other."""
    order = np.asarray(indices, np.int64)
    order = order[np.argsort(-examples.lengths[order].astype(np.int64), kind="stable")]
    start = 0
    while start < len(order):
        found = examples.example(int(order[start]))
        longest = max(1, int(examples.lengths[order[start]]))  # the first is the longest
        rows, groups = [*found], [0] * len(found)
        end = start + 1
        while end < len(order):
            found = examples.example(int(order[end]))
            if longest * (len(rows) + len(found)) > max_tokens:
                break
            rows += found
            groups += [end - start] * len(found)
            end += 1
        yield order[start:end], _batch(rows, groups)
        start = end


def _batch(rows: Sequence[Row], groups: Sequence[int]) -> Batch:
    """Rows padded on the right with id 0 to the longest."""
    lengths = np.array([len(row.ids) for row in rows], np.int32)
    ids = np.zeros((len(rows), int(lengths.max())), np.int32)
    mask = np.zeros(ids.shape, np.bool_)
    for at, row in enumerate(rows):
        ids[at, : lengths[at]], mask[at, : lengths[at]] = row.ids, row.mask
    weights = np.array([row.weight for row in rows], np.float32)
    known = [row.reference for row in rows if row.reference is not None]
    reference = np.concatenate(known) if len(known) == len(rows) else None
    return Batch(ids, lengths, mask, np.array(groups, np.int32), weights, reference)
