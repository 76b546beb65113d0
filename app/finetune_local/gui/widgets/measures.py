"""Metrics of evaluations and of objectives: their names and values in the user's language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_local.spec.objectives import Objective, ObjectiveMetric

if TYPE_CHECKING:
    from finetune_local.evaluation.metrics import Metric
    from finetune_local.gui.i18n.formats import Formats
    from finetune_local.gui.i18n.strings import Strings


def metric_title(t: Strings, metric: Metric) -> str:
    """A metric's name in a choice."""
    return t.get(f"metrics.{metric.key}.title") or metric.title


def metric_short(t: Strings, metric: Metric) -> str:
    """A metric's name as a column heading."""
    return t.get(f"metrics.{metric.key}.short") or metric.short


def value_text(f: Formats, metric: Metric, value: float, digits: int = 3) -> str:
    """A loss in nats with `digits` decimals, any other metric as a percentage."""
    return f.number(value, digits) if metric.is_loss else f.percent(value)


@dataclass(frozen=True)
class Measure:
    """A metric that an objective declares, as one window shows it."""

    metric: ObjectiveMetric
    title: str

    @property
    def key(self) -> str:
        """The metric's name in events."""
        return self.metric.key

    def text(self, f: Formats, value: float | None) -> str:
        """A value: a share as a percentage, any other with four decimals."""
        return f.percent(value) if self.metric.share else f.loss(value)


def measures(t: Strings, objectives: Iterable[Objective | None]) -> list[Measure]:
    """The metrics that objectives declare, each once. Those of the same key and title are the same."""
    found = (
        Measure(metric, t.get(f"metrics.{objective.key}.{metric.key}") or metric.title)
        for objective in objectives
        if objective is not None
        for metric in objective.reports
    )
    return list(dict.fromkeys(found))


def charted(shown: Iterable[Measure]) -> Iterator[list[Measure]]:
    """Measures by the chart they are drawn in."""
    charts: dict[str, list[Measure]] = {}
    for measure in shown:
        charts.setdefault(measure.metric.chart or f"{measure.key} alone", []).append(measure)
    yield from charts.values()


def objective_title(t: Strings, objective: Objective) -> str:
    """An objective's name."""
    return t.get(f"objectives.{objective.key}.title") or objective.title


def objective_summary(t: Strings, objective: Objective) -> str:
    """What an objective learns, in a sentence."""
    return t.get(f"objectives.{objective.key}.summary") or objective.summary
