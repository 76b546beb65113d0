"""Token F1, as in SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1), for any script."""

from __future__ import annotations

from collections import Counter

from finetune_local.evaluation.metrics import Metric, normalise, tokens
from finetune_local.system.messages import msg


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over tokens, regardless of order; see tokens()."""
    answered, expected = Counter(tokens(answer)), Counter(tokens(reference))
    if not answered or not expected:
        return float(normalise(answer) == normalise(reference))
    shared = (answered & expected).total()
    return 2 * shared / (answered.total() + expected.total())


METRIC = Metric("f1", "Token F1", "F1", msg("token F1"), 30, f1)
