"""A child that answers requests, with a child made for these tests (tests/answering.py)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.runtime.rpc import Service
from finetune_local.system.errors import DataError, WorkerDied


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    found = Service("answering", ("5",), tmp_path / "日志 log" / "child.log")
    yield found
    found.close()


def test_a_result_comes_back_with_what_was_told_on_the_way(service: Service) -> None:
    assert not service.running  # nothing is started before it is asked
    asked = service.follow("count", to=3, word="中文 \n x")
    assert [event["n"] for event in asked] == [0, 1, 2]
    assert service.ask("echo", word="中文 \n x") == "中文 \n x"


def test_an_error_of_the_app_is_raised_as_it_was(service: Service) -> None:
    with pytest.raises(DataError, match="the file is empty"):
        service.ask("refuse")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        service.ask("defect")
    assert service.ask("echo", word="still there") == "still there"


def test_what_libraries_print_does_not_come_between(service: Service) -> None:
    assert service.ask("print") == "done"
    assert "a library says hello" in service.log.read_text("utf-8")


def test_a_killed_child_is_told_with_its_last_words_and_started_anew(service: Service) -> None:
    service.ask("print")
    asked = service.follow("wait", seconds=30)
    next(asked)
    assert service.pid is not None
    os.kill(service.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="a library says hello"):
        asked.results()
    assert service.ask("echo", word="again") == "again"


def test_who_no_longer_wants_the_rest_stops_it(service: Service) -> None:
    asked = service.follow("wait", seconds=30)
    next(asked)
    began = time.monotonic()
    asked.stop()
    assert asked.results() == "interrupted"
    assert time.monotonic() - began < 5


def test_two_ask_at_once_and_each_has_its_own(service: Service) -> None:
    found: dict[int, list[int]] = {}

    def ask(number: int) -> None:
        found[number] = [event["n"] for event in service.follow("count", to=number)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in (4, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {4: [0, 1, 2, 3], 7: [0, 1, 2, 3, 4, 5, 6]}


def test_an_idle_child_gives_its_memory_back_and_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    service = Service("answering", ("0.2",), tmp_path / "child.log")
    service.ask("echo", word="x")
    first = service.pid
    until = time.monotonic() + 10
    while service.running and time.monotonic() < until:
        time.sleep(0.05)
    assert not service.running
    assert service.ask("echo", word="y") == "y"
    assert service.pid != first
    service.close()


def test_the_child_does_not_outlive_whoever_asks(service: Service) -> None:
    service.ask("echo", word="x")
    process = service._process
    assert process is not None
    service.close()
    assert process.poll() is not None
