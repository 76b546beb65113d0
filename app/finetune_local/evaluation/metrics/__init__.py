"""What an evaluation measures: one file per metric, found by listing this folder.

A metric is a module with
    METRIC: Metric        its key, its words, and how an answer is compared with its reference
The window, the command line, the verdict and the kept evaluations read all they show from it. Its Chinese words are in
assets/strings/metrics.toml; a metric without any appears by its English ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from finetune_local.system.registry import declared, in_order

DEFAULT = "exact"
"""What the verdict rests on where nothing else is chosen."""


@dataclass(frozen=True)
class Metric:
    """`title` is its name in a choice, `short` over a column, `phrase` within a sentence of the verdict.

    `compare(answer, reference)` is from 0 to 1, more is better; None marks the loss of the reference, which is measured by
    the model itself in nats per token, less is better.
    """

    key: str
    title: str
    short: str
    phrase: str
    order: int
    compare: Callable[[str, str], float] | None

    @property
    def is_loss(self) -> bool:
        """Whether it is measured in nats per token, less is better; all others are shares, more is better."""
        return self.compare is None


@cache
def metrics() -> Mapping[str, Metric]:
    """Every metric by its key, in the order they are shown."""
    return in_order(declared(__name__, "METRIC"))


def text_metrics() -> Mapping[str, Metric]:
    """The metrics that compare an answer with its reference."""
    return {key: one for key, one in metrics().items() if not one.is_loss}


def loss_metric() -> Metric:
    """The loss of the reference."""
    return next(one for one in metrics().values() if one.is_loss)


def compare_texts(answer: str, reference: str) -> dict[str, float]:
    """Every text metric of one answer, by its key."""
    return {key: one.compare(answer, reference) for key, one in metrics().items() if one.compare is not None}
