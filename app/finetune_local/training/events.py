"""The events of a run. Readers of a run see nothing else of its training."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Preparation: what is being done and the share done from 0 to 1 ("reading data", 0.4); None where unknown."""

    kind = "phase"
    name: str
    done: float | None = None


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """The loop begins at `step` (0 for a new run) of `steps`."""

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
    """One optimizer step is done. Loss is the mean over its supervised tokens, in nats, before the update."""

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
    """Mean loss over the validation examples after `step`; `best` is whether none was lower before.

    `metrics` are the objective's others by name (an accuracy, a margin), none for most.
    """

    kind = "validation"
    durable = True
    step: int
    loss: float
    best: bool
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """See Event."""
        values = super().as_json()
        return values if self.metrics else {key: value for key, value in values.items() if key != "metrics"}


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
    """A checkpoint is safely on disk."""

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
    """The last event of a run that was stopped; everything up to `step` is saved."""

    kind = "stopped"
    durable = True
    end = Status.STOPPED
    step: int
    summary: Mapping[str, Any]


EVENTS = EventFormat(Phase, Note, Started, Step, Validation, Sample, Checkpoint, Finished, StoppedByUser, Failed)
"""The events of a run."""

ENDS = EVENTS.ends
"""The last event of a run is one of these."""
