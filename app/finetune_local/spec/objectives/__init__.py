"""What is minimised: one file per objective, found by listing. Its loss is written once, over a backend's `ops`.

An objective file has
    OBJECTIVE: Objective        an instance with default settings
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Self

import numpy as np

from finetune_local.spec.batch import Batch, Readout, ValueKind
from finetune_local.spec.ops import NUMPY, Ops
from finetune_local.system.errors import UnknownName
from finetune_local.system.fields import Settings, choices, declared, setting
from finetune_local.system.messages import msg

Need = Literal["reference"] | ValueKind
"""What an objective needs in addition to log-probabilities: Batch.reference, or Readout.values of one of two kinds."""

ExampleKind = Literal["conversation", "text", "pair"]
"""What an objective learns from: a conversation (its answers), a plain text, or a pair of a chosen and a rejected answer.

A conversation and a piece of text become one row of a batch; a pair becomes two, of weight +1 and -1.
"""

ROWS: Mapping[ExampleKind, int] = {"conversation": 1, "text": 1, "pair": 2}
"""Rows of a batch that one example becomes."""

LOSS = "loss"
"""The metric that every objective reports, used by `best` and early stopping."""


class NoSettings(Settings):
    """For objectives without settings."""


class ReferenceSettings(Settings):
    """The settings that every objective with a reference has."""

    cache_reference: bool = setting(
        False,
        help="Compute the reference once and store its log-probabilities in the run, instead of in every step.",
        group="objective",
    )


@dataclass(frozen=True)
class Mean:
    """A mean accumulated over batches: a sum and its divisor."""

    total: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean so far."""
        return self.total / self.count


@dataclass(frozen=True)
class ObjectiveMetric:
    """A metric that validation reports beside the loss."""

    key: str
    """Its name in events and on the command line."""
    title: str
    """Its English name; the Chinese is in assets/strings/metrics.toml."""
    share: bool = False
    """Whether it is a share from 0 to 1, shown as a percentage."""
    chart: str = ""
    """Metrics with the same name here are drawn in one chart; empty: in a chart alone."""


class Objective:
    """A loss over a model's outputs for a batch. Subclasses override what differs."""

    key: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str] = ""
    settings: ClassVar[type[Settings]] = NoSettings
    """The objective's own group of settings."""
    examples: ClassVar[frozenset[ExampleKind]] = frozenset({"conversation", "text"})
    """The kinds of example it learns from; rows of another kind are rejected with a sentence."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    reports: ClassVar[tuple[ObjectiveMetric, ...]] = ()
    """What `metrics` returns in addition to LOSS, in display order."""
    is_default: ClassVar[bool] = False
    """Whether this is the objective of runs that name none."""
    lr_factor: ClassVar[float] = 1.0
    """The automatic learning rate, as a multiple of that of supervised fine-tuning."""

    def __init__(self, chosen: Settings | None = None) -> None:
        self.chosen = self.settings() if chosen is None else chosen
        """The values of its settings."""

    def with_settings(self, chosen: Settings) -> Self:
        """The same objective with other settings."""
        return type(self)(chosen)

    @property
    def value_kind(self) -> ValueKind | None:
        """The kind of scalar-head values it needs, or None."""
        return next((need for need in self.needs if need != "reference"), None)

    @property
    def rows(self) -> int:
        """Rows of a batch that one example becomes, at most."""
        return max(ROWS[kind] for kind in self.examples)

    @property
    def reference_in_steps(self) -> bool:
        """Whether every step computes the reference, by one more forward pass over its rows."""
        return "reference" in self.needs and not self.keeps_reference

    @property
    def keeps_reference(self) -> bool:
        """Whether the reference's log-probabilities are computed once and kept with the run's data."""
        return isinstance(self.chosen, ReferenceSettings) and self.chosen.cache_reference

    def count(self, batch: Batch) -> int:
        """What a step's mean is taken over, in one micro-batch: supervised tokens, or examples for some objectives."""
        return batch.supervised

    def loss(self, ops: Ops, readout: Readout, batch: Batch, total: float) -> Any:
        """This micro-batch's share of the step's loss, a scalar array of the backend.

        `total` is the sum of `count` over the step's micro-batches, so that the shares add up to the step's mean.
        """
        raise NotImplementedError

    def metrics(self, readout: Readout, batch: Batch) -> Mapping[str, Mean]:
        """LOSS, the lower the better, and what `reports` declares; numpy arrays in `readout`."""
        exact = Readout(np.asarray(readout.logprobs, np.float64), readout.values)
        return {LOSS: Mean(float(self.loss(NUMPY, exact, batch, 1.0)), self.count(batch))}


@cache
def objectives() -> Mapping[str, Objective]:
    """Every objective by its key, with default settings."""
    return declared(__name__, "OBJECTIVE", Objective)


def objective_named(key: str) -> Objective:
    """The objective called `key`, with default settings. Raises UnknownName with the known ones."""
    known = objectives()
    if key not in known:
        raise UnknownName(msg("there is no objective '{name}'.{did_you_mean} Known: {names}.", **choices(key, known)))
    return known[key]


def learning_from(kind: ExampleKind) -> list[str]:
    """The keys of the objectives that learn from a kind of example."""
    return [key for key, objective in objectives().items() if kind in objective.examples]


def suggested(kinds: Collection[str]) -> Objective | None:
    """The objective for data of these kinds of examples: the one made for exactly these, else the first that learns from all."""
    able = [objective for objective in objectives().values() if kinds and objective.examples.issuperset(kinds)]
    return next((objective for objective in able if objective.examples == set(kinds)), able[0] if able else None)
