"""The positions at which a batch is read out, and the losses there: the arithmetic that is the same on every backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_local.backend import StepRequest
from finetune_local.spec.batch import Batch, Readout, ValueKind
from finetune_local.spec.objectives import Objective
from finetune_local.spec.ops import Ops

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Positions:
    """The hidden states of a batch that are read, as indices into its first `width` columns, flattened to (rows·width).

    `tokens` (n,) are the positions before each supervised token, in row-major order, and `targets` (n,) those tokens' ids. `rows` (rows,)
    are the rows' last real tokens; empty without "row values". Columns from `width` on do not affect the result.
    """

    width: int
    tokens: Indices
    targets: Indices
    rows: Indices


def positions(batch: Batch, kind: ValueKind | None = None) -> Positions:
    """The positions of a batch with at least one supervised token; with `rows` if `kind` is "row values"."""
    rows, columns = np.nonzero(batch.mask[:, 1:])
    last = batch.lengths.astype(np.int64) - 1 if kind == "row values" else np.zeros(0, np.int64)
    width = int(max(columns.max(initial=-1), last.max(initial=-1))) + 1
    targets = batch.ids[rows, columns + 1].astype(np.int64)
    return Positions(width, rows * width + columns, targets, np.arange(len(last)) * width + last)


@dataclass(frozen=True)
class Part:
    """One request's micro-batch in a pass: the request's number, its rows and supervised tokens, and the step's total for its objective."""

    number: int
    batch: Batch
    objective: Objective
    total: float


def parts_of(requests: Sequence[StepRequest], present: Sequence[tuple[int, Batch]]) -> list[Part]:
    """The parts of a pass, in its order."""
    parts = []
    for number, batch in present:
        objective = requests[number].objective
        total = float(sum(objective.count(other) for other in requests[number].batches))
        parts.append(Part(number, batch, objective, total))
    return parts


def losses(
    ops: Ops,
    parts: Sequence[Part],
    ensemble_size: int,
    logprobs: Any,
    values: Callable[[int, slice, slice], Any],
) -> list[Any]:
    """The loss of each part, as scalar arrays. An ensemble's loss is the sum over its prompts, so that each learns as if alone.

    `logprobs` (Σ ensemble_size·n,) are those of the whole pass; `values(number, tokens, rows)` returns a request's values at slices of the
    pass's supervised tokens and rows, or None.
    """
    found = []
    token = row = 0
    for part in parts:
        own = []
        for _ in range(ensemble_size):
            tokens, rows = slice(token, token + part.batch.supervised), slice(row, row + len(part.batch.ids))
            readout = Readout(logprobs[tokens], values(part.number, tokens, rows))
            own.append(part.objective.loss(ops, readout, part.batch, part.total))
            token, row = tokens.stop, rows.stop
        found.append(ops.stack(own).sum())
    return found
