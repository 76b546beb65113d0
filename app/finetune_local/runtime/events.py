"""Events of a process folder: frozen records, one JSON object per line of events.jsonl.

Runs (training/events.py) and jobs (runtime/job.py) each have an EventFormat: the events that may be in their files.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import UnionType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

from finetune_local.runtime.status import Status
from finetune_local.system.errors import FinetuneError, error_class
from finetune_local.system.messages import Message, as_message, message_of, msg


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of events; `time` is in seconds since the epoch."""

    kind: ClassVar[str]
    durable: ClassVar[bool] = False
    """Whether appending the event flushes it, and all events before it, to the disk."""
    end: ClassVar[Status | None] = None
    """For an event that ends the work: the status after it."""

    time: float = field(default_factory=time.time)

    def as_json(self) -> dict[str, Any]:
        """The line of events.jsonl: the fields, and the kind under "event". Changing it does not change the event."""
        omitted = self._omitted()
        return {"event": self.kind} | {
            name: _copied(value) for name, value in vars(self).items() if name not in omitted
        }

    def _omitted(self) -> Collection[str]:
        """Names of fields that this event's line does not have."""
        return ()


def _copied(value: Any) -> Any:
    """A plain JSON value whose objects and lists are copies. Faster than deepcopy(), and a run has thousands of events."""
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, (list, tuple)) else value


_CHOSEN = ("setting", "value", "replaced", "reason")
"""Fields of a note about an automatic value."""


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A sentence for the user: an automatic value of a setting with its reason, a fallback, advice."""

    kind = "note"
    text: str
    setting: str = ""
    value: str | int | float | bool | None = None
    replaced: str | int | float | bool | None = None
    reason: str = ""

    @classmethod
    def chosen(cls, setting: str, value: Any, reason: Message, replaced: Any = None) -> Note:
        """A note about an automatic value and its reason; `replaced` is the value that a preset had set."""
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        text = msg("{setting} = {value} ({reason})", setting=setting, value=shown, reason=reason)
        if replaced is not None:
            text = msg(
                "{setting} = {value} instead of {replaced}: {reason}",
                setting=setting,
                value=shown,
                replaced=replaced,
                reason=reason,
            )
        return cls(text=text, setting=setting, value=value, replaced=replaced, reason=reason)

    def _omitted(self) -> Collection[str]:
        return () if self.setting else _CHOSEN


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The last event of failed work. `error` is the code of a class in system/errors.py, or "" for a defect, with its traceback."""

    kind = "failed"
    durable = True
    end = Status.FAILED
    error: str
    message: str
    exit_code: int = 1
    traceback: str = ""

    @classmethod
    def of(cls, error: FinetuneError) -> Failed:
        """The event that reports an error of the app."""
        return cls(error=error.code, message=message_of(error), exit_code=error.exit_code)

    def exception(self) -> Exception:
        """The error as an exception; a defect becomes a RuntimeError with the traceback."""
        return exception_of(self.error, self.message, self.traceback)


def exception_of(name: str, message: str, traceback: str = "") -> Exception:
    """An exception of the class with this code (system/errors.py); for any other code a RuntimeError with the traceback."""
    if (kind := error_class(name)) is not None:
        return kind(as_message(message))
    return RuntimeError(traceback or message or "unknown")


class EventFormat:
    """The events that may be in a file, and how its lines are read."""

    def __init__(self, *classes: type[Event], aliases: Mapping[str, type[Event]] | None = None) -> None:
        """`aliases` maps kinds that earlier versions wrote to their classes."""
        self.classes: Mapping[str, type[Event]] = {**{one.kind: one for one in classes}, **(aliases or {})}
        self.ends = tuple(one for one in classes if one.end is not None)
        """The events that end a run or a job."""

    def class_of(self, line: Mapping[str, Any] | None) -> type[Event] | None:
        """The class of a line's event; None for no line or an unknown kind."""
        kind = line.get("event") if line is not None else None
        return self.classes.get(kind) if isinstance(kind, str) else None

    def read(self, line: Mapping[str, Any]) -> Event | None:
        """The event of a line that Event.as_json() wrote; None if the line is damaged or of an unknown kind."""
        found = self.class_of(line)
        if found is None:
            return None
        values = {key: value for key, value in line.items() if key != "event"}
        allowed = _types_of_fields(found)  # type: ignore[arg-type] # a class is hashable, whatever its objects are
        if not all(name in allowed and _fits(value, allowed[name]) for name, value in values.items()):
            return None
        try:
            return found(**values)
        except TypeError:  # a required field is missing
            return None


def _fits(value: object, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (bool in types or not isinstance(value, bool))


@cache
def _types_of_fields(event: type[Event]) -> Mapping[str, tuple[type, ...]]:
    """The types that a JSON value of each field may have."""
    hints = get_type_hints(event)
    return {one.name: _types(hints[one.name]) for one in dataclasses.fields(event)}


def _types(hint: Any) -> tuple[type, ...]:
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    found = tuple(get_origin(part) or part for part in parts)
    return (*found, int) if float in found else found
