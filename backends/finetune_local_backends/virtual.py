"""Virtual tokens: ids past the vocabulary that stand for the trained rows of a prompt, put before every text.

Row i of member m's prompt is the id vocabulary + count·m + i; which module turns these ids into vectors is the business of
the family's file in a backend's methods/. With several members (a prompt ensemble) a batch is repeated, one block of
rows for each, so that one pass of the base computes all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune_local.backend import Batch, Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import VirtualIds, tuner_of


class VirtualContext:
    """What a session says of its active adapter's own positions; see Session."""

    _plans: dict[str, AdapterPlan]
    _active: str | None

    def virtual(self) -> VirtualIds:
        """The positions that the active adapter puts before every text."""
        plan = self._plans.get(self._active or "")
        return VirtualIds() if plan is None else tuner_of(plan).virtual_ids(plan)

    @property
    def ensemble_size(self) -> int:
        """See Session."""
        return self.virtual().ensemble_size

    @property
    def virtual_tokens(self) -> int:
        """See Session."""
        plan = self._plans.get(self._active or "")
        return 0 if plan is None else tuner_of(plan).virtual_tokens(plan)


def row_with(ids: Sequence[int], vocabulary: int, tokens: VirtualIds, member: int = 0) -> list[int]:
    """A text with the virtual tokens of one member before it."""
    start = vocabulary + tokens.count * member
    return [*range(start, start + tokens.count), *ids]


def batch_with(batch: Batch, vocabulary: int, tokens: VirtualIds) -> Batch:
    """The batch under each member's prompt: all rows for member 0, then all for member 1, …; nothing virtual is supervised.

    (rows, length) becomes (members·rows, count + length); a batch without virtual tokens is handed back as it is.
    """
    if tokens.count == 0:
        return batch
    ensemble_size, rows = tokens.ensemble_size, len(batch.ids)
    prompts = vocabulary + np.arange(ensemble_size * tokens.count, dtype=np.int32).reshape(ensemble_size, tokens.count)
    ids = np.concatenate([np.repeat(prompts, rows, axis=0), np.tile(batch.ids, (ensemble_size, 1))], axis=1)
    unseen = np.zeros((ensemble_size * rows, tokens.count), np.bool_)
    mask = np.concatenate([unseen, np.tile(batch.mask, (ensemble_size, 1))], axis=1)
    lengths = np.tile(batch.lengths, ensemble_size) + tokens.count
    return Batch(ids.astype(np.int32), lengths.astype(np.int32), mask)


def mean_over_ensemble(values: npt.NDArray[np.float32], ensemble_size: int) -> Floats:
    """The mean of blocks of equal size, one for each member: (members·n,) to (n,)."""
    if ensemble_size == 1:
        return values
    mean: Floats = values.reshape(ensemble_size, -1).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean
