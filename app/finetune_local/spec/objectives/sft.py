"""Supervised fine-tuning: the mean negative log-likelihood of the supervised tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_local.spec.objectives import Ops

if TYPE_CHECKING:
    from finetune_local.backend import Batch


class Sft:
    """See Objective."""

    key = "sft"
    title = "Supervised fine-tuning"

    def loss(self, ops: Ops, logprobs: Any, batch: Batch, total: float) -> Any:
        """−Σ log p / total: weighted by tokens, so accumulation over micro-batches equals one big batch."""
        return -ops.sum(logprobs) / total


OBJECTIVE = Sft()
