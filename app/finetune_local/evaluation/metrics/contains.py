"""Contains: the reference occurs in the answer."""

from __future__ import annotations

from finetune_local.evaluation.metrics import Metric, normalise
from finetune_local.system.messages import msg


def contains(answer: str, reference: str) -> float:
    """1.0 if the answer contains the reference, else 0.0."""
    return float(normalise(reference) in normalise(answer))


METRIC = Metric(
    "contains",
    "Contains the expected answer",
    "Contains",
    msg("answers that contain the reference answer"),
    20,
    contains,
)
