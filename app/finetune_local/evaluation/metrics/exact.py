"""Exact match: the answer is the reference, apart from surrounding space."""

from __future__ import annotations

from finetune_local.evaluation.metrics import Metric, normalise
from finetune_local.system.messages import msg


def exact(answer: str, reference: str) -> float:
    """1 where both are the same text."""
    return float(normalise(answer) == normalise(reference))


METRIC = Metric("exact", "Exact match", "Exact", msg("exact match"), 10, exact)
