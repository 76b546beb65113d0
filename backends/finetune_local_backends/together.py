"""Micro-batches of several adapters as one: rows under rows, so that one pass of the base serves all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import numpy as np

from finetune_local.backend import Batch, StepRequest
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import tuner_of
from finetune_local.system.errors import Unsupported


def joined(batches: Sequence[Batch]) -> tuple[Batch, list[slice]]:
    """The rows of all, padded on the right to the longest, and which rows are whose."""
    if len(batches) == 1:
        return batches[0], [slice(0, len(batches[0].ids))]
    width = max(batch.ids.shape[1] for batch in batches)
    ends = np.cumsum([len(batch.ids) for batch in batches]).tolist()
    whole = Batch(
        np.concatenate([_wide(batch.ids, width) for batch in batches]),
        np.concatenate([batch.lengths for batch in batches]),
        np.concatenate([_wide(batch.mask, width) for batch in batches]),
    )
    return whole, [slice(end - len(batch.ids), end) for batch, end in zip(batches, ends, strict=True)]


def rounds(requests: Sequence[StepRequest]) -> Iterator[list[tuple[int, Batch]]]:
    """What is computed at once: the first micro-batch of every share with its number, then the second of those that have one.

    Batches without a supervised token are left out.
    """
    for batches in zip_longest(*(request.batches for request in requests)):
        present = [(number, batch) for number, batch in enumerate(batches) if batch is not None and batch.supervised]
        if present:
            yield present


def check_plans(plans: Sequence[AdapterPlan]) -> None:
    """Raise Unsupported where one of several plans cannot share a pass of the base."""
    for plan in plans:
        if reason := tuner_of(plan).sharing_refusal(plan):
            raise Unsupported(f"method '{plan.method}' cannot be trained beside other adapters: {reason}")


def _wide(array: np.ndarray, width: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])))
