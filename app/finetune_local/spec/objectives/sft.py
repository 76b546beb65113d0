"""Supervised fine-tuning: the mean negative log-likelihood of the supervised tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import LOSS, Mean, Objective
from finetune_local.spec.ops import Ops


class Sft(Objective):
    """See Objective."""

    key = "sft"
    title = "Supervised fine-tuning"
    summary = "Learns the answers of conversations, token by token; of plain texts every token."
    is_default = True

    def loss(self, ops: Ops, readout: Readout, batch: Batch, total: float) -> Any:
        """−Σ log p / total: weighted by tokens, so accumulation over micro-batches equals one big batch."""
        return -ops.sum(readout.logprobs) / total

    def metrics(self, readout: Readout, batch: Batch) -> Mapping[str, Mean]:
        """See Objective. Summed in float64 from the float32 log-probabilities."""
        return {LOSS: Mean(-float(readout.logprobs.sum(dtype=np.float64)), batch.supervised)}


OBJECTIVE = Sft()
