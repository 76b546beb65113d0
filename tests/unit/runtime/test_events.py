"""Events are plain JSON, and a line that was made from an event is independent of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from finetune_local.runtime import job
from finetune_local.runtime.events import Event
from finetune_local.training import events

CLASSES = sorted(
    {*job.EVENTS.classes.values(), *events.EVENTS.classes.values()}, key=lambda one: (one.__module__, one.kind)
)
SCALARS = (str, int, float, bool, NoneType)


def not_plain(hint: Any) -> Iterator[Any]:
    """The parts of an annotation that JSON has no value for."""
    origin, arguments = get_origin(hint), get_args(hint)
    if isinstance(hint, UnionType):
        for part in arguments:
            yield from not_plain(part)
    elif origin in (list, tuple):
        for part in arguments:
            yield from () if part is Ellipsis else not_plain(part)
    elif origin in (dict, Mapping):
        key, value = arguments
        yield from () if key is str else [key]
        yield from () if value is Any else not_plain(value)
    elif hint not in SCALARS:
        yield hint


@pytest.mark.parametrize("event", CLASSES, ids=lambda one: f"{one.__module__.rpartition('.')[2]}-{one.kind}")
def test_fields_of_events_are_plain_json(event: type[Event]) -> None:
    hints = get_type_hints(event)
    fields = {one.name: hints[one.name] for one in dataclasses.fields(event)}
    assert {name: found for name, hint in fields.items() if (found := list(not_plain(hint)))} == {}


def test_a_line_is_independent_of_its_event() -> None:
    summary = {"losses": [1.0, {"a": 1}], "steps": 3}
    event = events.Finished(reason="done", summary=summary)
    line = event.as_json()
    assert line == {"event": "finished", "time": event.time, "reason": "done", "summary": summary}
    line["summary"]["steps"] = 4
    line["summary"]["losses"][1]["a"] = 2
    line["summary"]["losses"].append(2.0)
    assert event.summary == {"losses": [1.0, {"a": 1}], "steps": 3}


def test_a_line_has_the_fields_in_order() -> None:
    event = job.Progress(time=1.0, text="reading", done=None, facts={"rows": (1, 2)})
    assert list(event.as_json().items()) == [
        ("event", "progress"), ("time", 1.0), ("text", "reading"), ("done", None), ("facts", {"rows": [1, 2]}),
    ]  # fmt: skip
