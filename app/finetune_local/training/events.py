"""The events of a run: all that readers of a run see of its training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune_local.runtime.events import Event, EventFormat, Failed, Note
from finetune_local.runtime.status import Status

__all__ = [
    "ENDS", "EVENTS", "Checkpoint", "Event", "Failed", "Finished", "Note", "Phase", "Sample", "Started", "Step", "StoppedByUser",
    "Validation",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """A stage of the preparation ("reading data") and the share of it that is done, 0 to 1; None if unknown."""

    kind = "phase"
    name: str
    done: float | None = None


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The loop starts at `step` (0 for a new run) of `steps`."""

    kind = "started"
    step: int
    steps: int
    backend: str
    device: str
    precision: str
    trainable_parameters: int
    total_parameters: int
    rows: int
    validation_rows: int


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """An optimizer step. `loss` is the mean over its supervised tokens, in nats, before the update."""

    kind = "step"
    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    supervised_tokens: int
    tokens_per_second: float
    seconds_left: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Validation(Event):
    """Mean loss over the validation examples after `step`; `best` if it is the lowest so far.

    `metrics` are the objective's other metrics by name (an accuracy, a margin); most objectives have none.
    """

    kind = "validation"
    durable = True
    step: int
    loss: float
    best: bool
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def _omitted(self) -> Collection[str]:
        return () if self.metrics else ("metrics",)


@dataclass(frozen=True, kw_only=True)
class Sample(Event):
    """The model's greedy answer to a validation prompt after `step`."""

    kind = "sample"
    step: int
    prompt: str
    answer: str
    reference: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Event):
    """A checkpoint is complete on disk."""

    kind = "checkpoint"
    durable = True
    step: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The last event of a run that finished, early or not; `summary` is what `train --json` prints."""

    kind = "finished"
    durable = True
    end = Status.FINISHED
    reason: str
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StoppedByUser(Event):
    """The last event of a run that the user stopped; everything up to `step` is saved."""

    kind = "stopped"
    durable = True
    end = Status.STOPPED
    step: int
    summary: Mapping[str, Any]


EVENTS = EventFormat(Phase, Note, Started, Step, Validation, Sample, Checkpoint, Finished, StoppedByUser, Failed)
"""The events of a run."""

ENDS = EVENTS.ends
"""The events of which one is a run's last."""
