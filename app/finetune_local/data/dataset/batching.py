"""Rows to batches: the order of an epoch, and micro-batches by token budget. Numpy only; the same input, the same output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from finetune_local.data.dataset.store import Dataset
from finetune_local.spec.batch import Batch

Indices = npt.NDArray[np.int64]

MEGABATCH = 8
"""Batches whose rows are sorted by length together: enough that padding is small, few enough that order stays random."""


def epoch_batches(
    lengths: npt.NDArray[np.integer], batch_size: int, seed: int, epoch: int
) -> list[npt.NDArray[np.int64]]:
    """Row indices of each batch of an epoch: every row exactly once, a last short batch kept.

    Rows are shuffled by seed and epoch, sorted by length within megabatches of 8 batches, and the batches shuffled again.
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
    """Number of batches of an epoch of n rows."""
    return math.ceil(n / batch_size)


def micro_batches(dataset: Dataset, rows: Sequence[int] | Indices, max_tokens: int) -> list[Batch]:
    """One batch of rows in pieces of at most `max_tokens` tokens, padding counted; a longer row is a piece of its own.

    The longest come first, so that a lack of memory shows at the start of the step.
    """
    return [batch_of(dataset, group) for group in _groups(dataset, rows, max_tokens)]


def batches_for_scoring(
    dataset: Dataset, rows: Sequence[int] | Indices, max_tokens: int
) -> Iterator[tuple[Indices, Batch]]:
    """Pieces as of micro_batches, each with the indices of its rows, made as they are asked for."""
    for group in _groups(dataset, rows, max_tokens):
        yield group, batch_of(dataset, group)


def batch_of(dataset: Dataset, rows: Sequence[int] | Indices) -> Batch:
    """The given rows, padded on the right with id 0 to the longest."""
    lengths = dataset.lengths[np.asarray(rows, np.int64)]
    ids = np.zeros((len(lengths), int(lengths.max())), np.int32)
    mask = np.zeros(ids.shape, np.bool_)
    for at, index in enumerate(rows):
        ids[at, : lengths[at]], mask[at, : lengths[at]] = dataset.row(int(index))
    return Batch(ids=ids, lengths=lengths.astype(np.int32), mask=mask)


def _groups(dataset: Dataset, rows: Sequence[int] | Indices, max_tokens: int) -> list[Indices]:
    indices = np.asarray(rows, np.int64)
    ordered = indices[np.argsort(-dataset.lengths[indices].astype(np.int64), kind="stable")]
    groups: list[Indices] = []
    start = 0
    while start < len(ordered):
        fits = max(1, max_tokens // max(1, int(dataset.lengths[ordered[start]])))  # the first of a group is its longest
        groups.append(ordered[start : start + fits])
        start += fits
    return groups
