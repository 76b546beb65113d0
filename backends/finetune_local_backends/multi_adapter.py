"""Multi-adapter training: micro-batches of several adapters are concatenated by rows, so that one pass of the base serves all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol, TypeVar

import numpy as np

from finetune_local.backend import StepRequest
from finetune_local.spec.batch import Batch
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import tuner_of
from finetune_local.system.errors import Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.adapter import LayeredAdapter

MIXED = msg("this model mixes the rows of a batch, so several adapters cannot be trained at once on it.")


@dataclass
class Rows:
    """The adapter of each row of a batch: `slices` of `total` rows, and for each slice the number of its adapter in `owners`."""

    slices: list[slice] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    total: int = 0


class SplitLayer(Protocol):
    """A layer that applies each adapter's layer to that adapter's rows; rows of adapters without a layer here pass through the base alone."""

    parts: dict[int, Any]
    """The adapters' layers by the adapters' numbers."""


Split = TypeVar("Split", bound=SplitLayer)


def joined(batches: Sequence[Batch]) -> tuple[Batch, list[slice]]:
    """The rows of all batches, padded on the right to the longest, and which rows belong to which adapter.

    Used for the forward pass only: groups, weights and references stay in the parts.
    """
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
    """Micro-batches computed in one pass: the first of every request with the request's number, then the second of those that have one.

    Batches without a supervised token are skipped.
    """
    for batches in zip_longest(*(request.batches for request in requests)):
        present = [(number, batch) for number, batch in enumerate(batches) if batch is not None and batch.supervised]
        if present:
            yield present


def check_plans(plans: Sequence[AdapterPlan]) -> None:
    """Raise Unsupported if one of several plans cannot share a pass of the base with the others."""
    for plan in plans:
        if reason := tuner_of(plan).sharing_refusal(plan):
            raise Unsupported(
                msg(
                    "method '{method}' cannot be trained beside other adapters: {reason}",
                    method=plan.method,
                    reason=reason,
                )
            )


@contextmanager
def rows_split(adapters: Sequence[LayeredAdapter[Any, Any]], make: Callable[[Any, Rows], Split]) -> Iterator[Rows]:
    """Within this context wrapped modules apply the layers of all these inactive adapters, each to its rows.

    `make(layer, rows)` returns a module's SplitLayer; `layer` is the first adapter's layer at the module.
    """
    rows = Rows()
    split: dict[int, tuple[Any, Split]] = {}
    for number, adapter in enumerate(adapters):
        for module, layer in adapter.wrapped:
            found = split.setdefault(id(module), (module, make(layer, rows)))
            found[1].parts[number] = layer
    for module, layer in split.values():
        module.layers.layer = layer
    try:
        yield rows
    finally:
        for module, _ in split.values():
            module.layers.layer = None


def _wide(array: np.ndarray, width: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, width - array.shape[1])))
