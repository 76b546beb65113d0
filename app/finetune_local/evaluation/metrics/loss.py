"""Loss: the mean −log p per token of the reference, in nats, as the model predicts it."""

from __future__ import annotations

from finetune_local.evaluation.metrics import Metric
from finetune_local.system.messages import msg

METRIC = Metric("loss", "Loss of the expected answer", "Loss", msg("loss"), 40, None)
