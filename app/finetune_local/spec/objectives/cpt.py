"""Continued pretraining: every token of plain texts is learned, as in the base's own training.

A text longer than --max-length becomes several rows; no row holds tokens of two texts.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import LOSS, ExampleKind, Mean, ObjectiveMetric
from finetune_local.spec.objectives.sft import Sft


class Cpt(Sft):
    """See Objective. The loss is that of supervised fine-tuning with every token supervised but a row's first."""

    key = "cpt"
    title = "Continued pretraining"
    summary = "Learns every token of plain texts: a language, a field, a style."
    examples = frozenset[ExampleKind]({"text"})
    reports = (ObjectiveMetric("bits_per_token", "Bits per token"),)
    is_default = False

    def metrics(self, readout: Readout, batch: Batch) -> Mapping[str, Mean]:
        """The loss in nats, and the same in bits."""
        loss = super().metrics(readout, batch)[LOSS]
        return {LOSS: loss, "bits_per_token": Mean(loss.total / float(np.log(2)), loss.count)}


OBJECTIVE = Cpt()
