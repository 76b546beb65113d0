"""Exact match: the answer equals the reference, apart from surrounding whitespace."""

from __future__ import annotations

from finetune_local.evaluation.metrics import Metric, normalise
from finetune_local.system.messages import msg


def exact(answer: str, reference: str) -> float:
    """1.0 if both texts are equal after normalisation, else 0.0."""
    return float(normalise(answer) == normalise(reference))


METRIC = Metric("exact", "Exact match", "Exact", msg("exact match"), 10, exact)
