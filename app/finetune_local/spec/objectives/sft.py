"""Supervised fine-tuning: the mean negative log-likelihood of the supervised tokens."""

from __future__ import annotations

from typing import Any

from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import Objective
from finetune_local.spec.ops import Ops


class Sft(Objective):
    """See Objective."""

    key = "sft"
    title = "Supervised fine-tuning"

    def loss(self, ops: Ops, readout: Readout, batch: Batch, total: float) -> Any:
        """−Σ log p / total: weighted by tokens, so accumulation over micro-batches equals one big batch."""
        return -ops.sum(readout.logprobs) / total


OBJECTIVE = Sft()
