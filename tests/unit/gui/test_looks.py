"""Looks in the background, with a client that does what the test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_local.gui.pages.data.looks import Look, Question, question
from finetune_local.spec.run import DataSettings
from finetune_local.system.errors import WorkerDied


class Following:
    """A request under way that answers when it is let, or leaves off when it is stopped."""

    def __init__(self, client: FakeLookups) -> None:
        self._client, self._stopped = client, threading.Event()
        self._first = True

    def __next__(self) -> dict[str, Any]:
        if self._first:
            self._first = False
            return {"event": "sample", "found": {"complete": False, "report": {"rows": 7}}}
        while not self._stopped.is_set() and not self._client.let.is_set():
            time.sleep(0.005)
        if self._client.error is not None:
            raise self._client.error
        raise StopIteration({"complete": self._client.let.is_set(), "report": {"rows": 9}})

    def cancel(self) -> None:
        self._stopped.set()


class FakeLookups:
    """As an RpcClient; `asked` is what came, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.let = threading.Event()
        self.error: Exception | None = None

    def call(self, _procedure: str, **values: Any) -> dict[str, Any]:
        self.asked.append(f"rows {values['first']} {values['row']}")
        return {"rows": [values["first"]], "first": values["first"], "end": False, "masks": {}}

    def stream(self, _procedure: str, **values: Any) -> Following:
        self.asked.append(f"all {values['settings']['files'][0]}")
        return Following(self)


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


def wanted(first: int = 0, row: int = 0, name: str = "a") -> Question:
    return Question(f'{{"files": ["{name}"]}}', "", ((name, 1, 1),), first=first, row=row)


@pytest.fixture
def client() -> FakeLookups:
    return FakeLookups()


def test_rows_come_first_then_what_is_known_so_far_then_all(client: FakeLookups) -> None:
    look = Look(client)  # type: ignore[arg-type]
    look.ask(wanted())
    until(lambda: look.found is not None)
    assert look.rows is not None and look.working and not look.complete
    assert look.found is not None and look.found["report"]["rows"] == 7
    before = look.version
    client.let.set()
    look.wait(10)
    assert look.complete and not look.working and look.version > before
    assert client.asked == ["rows 0 0", "all a"]
    look.ask(wanted())
    assert not look.working, "what is known is not asked again"


def test_other_rows_interrupt_the_long_look_which_goes_on(client: FakeLookups) -> None:
    look = Look(client)  # type: ignore[arg-type]
    look.ask(wanted())
    until(lambda: look.found is not None)
    look.ask(wanted(first=10, row=11))
    until(lambda: look.rows is not None and look.rows["first"] == 10)
    client.let.set()
    look.wait(10)
    assert look.complete
    assert client.asked[0:3] == ["rows 0 0", "all a", "rows 10 11"] and set(client.asked[3:]) == {"all a"}


def test_other_files_make_what_was_found_forgotten(client: FakeLookups) -> None:
    look = Look(client)  # type: ignore[arg-type]
    client.let.set()
    look.ask(wanted())
    look.wait(10)
    client.let.clear()
    look.ask(wanted(name="b"))
    assert look.found is None or look.found["report"]["rows"] == 7
    client.let.set()
    look.wait(10)
    assert look.complete and client.asked[-1] == "all b"


def test_a_problem_is_kept_and_asked_again_only_on_purpose(client: FakeLookups) -> None:
    look = Look(client)  # type: ignore[arg-type]
    client.error = WorkerDied("gone")
    client.let.set()
    look.ask(wanted())
    look.wait(10)
    assert look.problem is client.error and not look.complete
    count = len(client.asked)
    time.sleep(0.05)
    assert len(client.asked) == count
    client.error = None
    look.ask(wanted())
    look.wait(10)
    assert look.complete


def test_a_question_is_another_when_a_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    settings = DataSettings(files=(str(path),))
    missing = question(settings, "m", tmp_path, 0, 10, 0)
    path.write_text("x", "utf-8")
    there = question(settings, "m", tmp_path, 0, 10, 0)
    assert missing != there == question(settings, "m", tmp_path, 0, 10, 0)
    assert there.whole == question(settings, "m", tmp_path, 30, 10, 31).whole
