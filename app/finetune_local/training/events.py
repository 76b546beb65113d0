"""What a run tells: frozen facts, one JSON object per line in events.jsonl. A reader of a run sees nothing else."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from finetune_local.system.errors import FinetuneError


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events; `time` is seconds since the epoch."""

    kind: ClassVar[str]
    time: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Any]:
        """A plain object with its kind under "event"."""
        return {"event": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """Preparation: what is being done now, and how far ("reading data", 0.4); `done` is None where unknown."""

    kind = "phase"
    name: str
    done: float | None = None


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A sentence for the user: an automatic choice, a fall-back, advice."""

    kind = "note"
    text: str


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
    step: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The last event of a run that came to its end, early or not; `summary` is what `train --json` prints."""

    kind = "finished"
    reason: str
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StoppedByUser(Event):
    """The last event of a run that was stopped; everything up to `step` is saved."""

    kind = "stopped"
    step: int
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The last event of a run that failed; `error` is the class in errors.py, or "" for a defect with its traceback."""

    kind = "failed"
    error: str
    message: str
    exit_code: int
    traceback: str = ""

    @classmethod
    def of(cls, error: FinetuneError) -> Failed:
        """The event that tells an error."""
        return cls(error=type(error).__name__, message=str(error), exit_code=error.exit_code)


EVENTS: Mapping[str, type[Event]] = {
    kind.kind: kind
    for kind in (Phase, Note, Started, Step, Validation, Sample, Checkpoint, Finished, StoppedByUser, Failed)
}

ENDS = (Finished, StoppedByUser, Failed)
"""One of these is the last event of a run."""


_KINDS: Mapping[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": (str,),
    "bool": (bool,),
    "Mapping[str, Any]": (dict,),
}
"""What JSON has for the fields' types."""


def from_json(values: Mapping[str, Any]) -> Event:
    """The event that as_json() gave. Raises KeyError for another kind of event, TypeError where a field is none of its type."""
    given = dict(values)
    kind = EVENTS[str(given.pop("event"))]
    for one in dataclasses.fields(kind):
        value, expected = given.get(one.name), _KINDS[str(one.type)]
        if one.name in given and (
            not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected)
        ):
            raise TypeError(f"{one.name} is no {one.type}")
    return kind(**given)


def readable(values: Mapping[str, Any]) -> Event | None:
    """The event, or None for a line that is none: damaged, of another program, or of a later version of this one."""
    try:
        event = from_json(values)
    except (KeyError, TypeError):
        return None
    fitting = all(isinstance(getattr(event, name), allowed) for name, allowed in _fields(event.kind))
    return event if fitting else None


@cache
def _fields(kind: str) -> tuple[tuple[str, tuple[type, ...]], ...]:
    """The fields of a kind of event, each with the types that its values can have."""
    hints = get_type_hints(EVENTS[kind])
    return tuple((one.name, _types(hints[one.name])) for one in dataclasses.fields(EVENTS[kind]))


def _types(hint: Any) -> tuple[type, ...]:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (get_origin(hint) or hint,)
    return (*kinds, int) if float in kinds else tuple(kinds)
