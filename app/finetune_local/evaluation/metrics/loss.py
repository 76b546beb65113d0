"""Loss: mean −log p of the reference per token, in nats, under the model."""

from __future__ import annotations

from finetune_local.evaluation.metrics import Metric
from finetune_local.system.messages import msg

METRIC = Metric("loss", "Loss of the expected answer", "Loss", msg("loss"), 40, None)
