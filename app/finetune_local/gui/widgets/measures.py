"""What an evaluation measured, in words: names of metrics and of conditions, and values as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_local.evaluation.metrics import Metric
    from finetune_local.gui.i18n.formats import Formats
    from finetune_local.gui.i18n.strings import Strings


def metric_title(t: Strings, metric: Metric) -> str:
    """What a metric is called in a choice."""
    return t.get(f"metrics.{metric.key}.title") or metric.title


def metric_short(t: Strings, metric: Metric) -> str:
    """What a metric is called over a column."""
    return t.get(f"metrics.{metric.key}.short") or metric.short


def value_text(f: Formats, metric: Metric, value: float, digits: int = 3) -> str:
    """A loss in nats with so many digits after the point, any other metric in percent."""
    return f.number(value, digits) if metric.is_loss else f.percent(value)
