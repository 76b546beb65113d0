"""Where a tuned model and its base differ: an evaluation's rows by how much better or worse the tuned answer is."""

from __future__ import annotations

from typing import Literal

from finetune_local.evaluation.metrics import Metric
from finetune_local.evaluation.store import Saved

Which = Literal["better", "worse", "all"]
WHICH: tuple[Which, ...] = ("better", "worse", "all")


def gains(saved: Saved, metric: Metric) -> list[float]:
    """How much better the tuned answer to each row is than the base's: for the loss, how much lower; 0 without an adapter."""
    sign, key = -1.0 if metric.is_loss else 1.0, metric.key
    found = []
    for row in saved.rows:
        tuned, base = row.answers.get("tuned"), row.answers["base"]
        found.append(sign * (tuned.values[key] - base.values[key]) if tuned is not None else 0.0)
    return found


def chosen(saved: Saved, metric: Metric, which: Which) -> list[int]:
    """Indices of the rows to show: those that got better or worse, the largest change first; for "all" in their order."""
    found = gains(saved, metric)
    if which == "all":
        return list(range(len(found)))
    kept = [i for i, gain in enumerate(found) if (gain > 0 if which == "better" else gain < 0)]
    return sorted(kept, key=lambda i: -abs(found[i]))


def counts(saved: Saved, metric: Metric) -> dict[Which, int]:
    """The number of rows of each choice."""
    found = gains(saved, metric)
    return {"better": sum(g > 0 for g in found), "worse": sum(g < 0 for g in found), "all": len(found)}
