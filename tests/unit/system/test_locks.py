"""Locks tell who works: held by one, looked at by many, free once the process is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_local.system import locks

HOLD = """
import os, sys
from finetune_local.system import locks
descriptor = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
print(locks.acquire(descriptor), flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that takes the lock; its answer has been read."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        yield process
        process.kill()


def take(file: Path) -> bool | None:
    """Take the lock and give it back."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        return locks.acquire(descriptor)
    finally:
        os.close(descriptor)


def test_one_holds_it_until_it_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "锁 lock"
    assert locks.held(file) is False and not file.exists()  # looking makes nothing
    with holder(file) as other:
        assert locks.held(file) is True and take(file) is False
        other.kill()
        other.wait()
        assert locks.held(file) is False and take(file) is True


def test_lookers_never_keep_one_from_beginning(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.touch()
    done, seen = threading.Event(), []

    def look() -> None:
        while not done.is_set():
            seen.append(locks.held(file))

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    # Each opens the file anew, so to the system threads are as apart as processes.
    answers = [take(file) for _ in range(2000)]
    done.set()
    for looker in lookers:
        looker.join()
    assert set(answers) == {True} and len(seen) > 100


def test_of_those_that_begin_at_once_one_does(tmp_path: Path) -> None:
    for number in range(30):
        file = tmp_path / str(number)
        start, answers = threading.Barrier(4), list[tuple[int, bool | None]]()

        def begin(file: Path = file, start: threading.Barrier = start, answers: list = answers) -> None:  # type: ignore[type-arg]
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT)
            start.wait()
            locks.held(file)
            answers.append((descriptor, locks.acquire(descriptor)))

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(str(mine) for _, mine in answers) == ["False", "False", "False", "True"]
        for descriptor, _ in answers:
            os.close(descriptor)


def test_a_drive_without_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lock"
    file.touch()
    monkeypatch.setattr(locks, "_try", lambda *_, **__: None)
    assert locks.held(file) is None and take(file) is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_pipe_in_its_place_stops_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    assert locks.held(tmp_path / "lock") is False
    assert locks.held(tmp_path) is False
