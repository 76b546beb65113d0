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
from finetune_local.spec.tuners import VirtualTokens, tuner_of


class Positions:
    """What a session says of its active adapter's own positions; see Session."""

    _plans: dict[str, AdapterPlan]
    _active: str | None

    def virtual(self) -> VirtualTokens:
        """The positions that the active adapter puts before every text."""
        plan = self._plans.get(self._active or "")
        return VirtualTokens() if plan is None else tuner_of(plan).virtual_tokens(plan)

    @property
    def members(self) -> int:
        """See Session."""
        return self.virtual().members

    @property
    def positions(self) -> int:
        """See Session."""
        plan = self._plans.get(self._active or "")
        return 0 if plan is None else tuner_of(plan).positions(plan)


def row_with(ids: Sequence[int], vocabulary: int, tokens: VirtualTokens, member: int = 0) -> list[int]:
    """A text with the virtual tokens of one member before it."""
    start = vocabulary + tokens.count * member
    return [*range(start, start + tokens.count), *ids]


def batch_with(batch: Batch, vocabulary: int, tokens: VirtualTokens) -> Batch:
    """The batch under each member's prompt: all rows for member 0, then all for member 1, …; nothing virtual is supervised.

    (rows, length) becomes (members·rows, count + length); a batch without virtual tokens is handed back as it is.
    """
    if tokens.count == 0:
        return batch
    members, rows = tokens.members, len(batch.ids)
    prompts = vocabulary + np.arange(members * tokens.count, dtype=np.int32).reshape(members, tokens.count)
    ids = np.concatenate([np.repeat(prompts, rows, axis=0), np.tile(batch.ids, (members, 1))], axis=1)
    unseen = np.zeros((members * rows, tokens.count), np.bool_)
    mask = np.concatenate([unseen, np.tile(batch.mask, (members, 1))], axis=1)
    lengths = np.tile(batch.lengths, members) + tokens.count
    return Batch(ids.astype(np.int32), lengths.astype(np.int32), mask)


def mean_over_members(values: npt.NDArray[np.float32], members: int) -> Floats:
    """The mean of blocks of equal size, one for each member: (members·n,) to (n,)."""
    if members == 1:
        return values
    mean: Floats = values.reshape(members, -1).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean
