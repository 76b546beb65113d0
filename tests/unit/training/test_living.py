"""A run lives while its lock is held, and is moved only while nobody can begin in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from finetune_local.runtime import start
from finetune_local.spec.run import parse_spec
from finetune_local.system import locks, trash
from finetune_local.system.errors import RunError, SpecError
from finetune_local.system.paths import Home
from finetune_local.system.process import Process
from finetune_local.training import worker
from finetune_local.training.run_folder import follow, runs
from working import mark_running, release


@pytest.fixture
def run(home: Home) -> runs.Run:
    return runs.create(home, parse_spec({"name": "夜 run", "data": {"files": ["x.jsonl"]}}, "test"))


@pytest.mark.parametrize("change", ["remove", "delete", "rename"])
def test_nobody_begins_in_a_run_that_is_moved(
    run: runs.Run, home: Home, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun = trash.moved, list[int]()

    def moved(folder: Path, target: Path) -> None:
        begun.append(worker.main([str(folder), str(home.root)]))
        real(folder, target)
        begun.append(worker.main([str(folder), str(home.root)]))

    monkeypatch.setattr(trash, "moved", moved)
    {
        "remove": lambda: runs.remove(run, home),
        "delete": lambda: runs.delete(run),
        "rename": lambda: runs.rename(run, "other", home),
    }[change]()
    assert begun[:2] == [1, 1]
    assert not run.folder.exists()
    assert [other.name for other in runs.every(home)] == (["other"] if change == "rename" else [])
    assert not list(home.runs.glob(".*"))


def test_one_that_was_moved_between_opening_and_locking_is_not_taken(
    run: runs.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = locks.acquire

    def late(descriptor: int) -> bool | None:
        if run.folder.exists():
            run.folder.rename(run.folder.with_name("elsewhere"))
        return real(descriptor)

    monkeypatch.setattr(locks, "acquire", late)
    with run.locked() as mine:
        assert not mine
    with pytest.raises(RunError, match="removed or renamed"):
        start.start([run], "no.such.module", [])


def test_a_worker_that_has_not_written_its_id_yet_lives(run: runs.Run, home: Home) -> None:
    mark_running(run)
    run.worker_file.unlink()
    assert run.alive() and run.worker_pid() is None and run.status() == "running"
    with pytest.raises(SpecError, match="is already training"):
        follow.start(run, home)
    with pytest.raises(SpecError, match="is running"):
        runs.remove(run, home)
    release(run)
    assert run.status() == "queued"


def test_workers_of_earlier_versions_are_understood(run: runs.Run) -> None:
    mark_running(run)
    known = Process.here()
    run.worker_file.write_text(json.dumps({"pid": known.pid, "started": known.started}), "utf-8")
    assert run.alive()
    release(run)
    run.worker_file.write_text(json.dumps({"pid": known.pid, "started": known.started}), "utf-8")
    assert not run.alive() and run.worker_pid() is None and run.process_state().killed


@pytest.mark.parametrize("pid", [float("inf"), "x", None, 10**30, -1, [1]])
def test_a_damaged_worker_file_hides_nothing(run: runs.Run, home: Home, pid: Any) -> None:
    run.worker_file.write_text(json.dumps({"pid": pid, "started": 1.0}), "utf-8")
    assert run.worker_pid() is None and not run.alive()
    assert [other.name for other in runs.every(home)] == [run.name] and runs.running(home) == []
    mark_running(run)
    run.worker_file.write_text(json.dumps({"pid": pid, "started": 1.0}), "utf-8")
    assert run.worker_pid() is None and run.alive()
    release(run)


def test_without_locks_the_worker_file_tells(run: runs.Run, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_try", lambda *_, **__: None)
    run.lock_file.touch()  # a worker makes it, locks or not
    assert not run.alive()
    run.write_worker_file()
    assert run.alive() and run.worker_pid() == os.getpid()
    with run.locked() as mine:
        assert mine  # this process's own
    known = Process.of(os.getppid()).as_json()
    run.worker_file.write_text(json.dumps(known), "utf-8")
    with pytest.raises(SpecError, match="is running"):
        runs.remove(run, home)
    run.worker_file.write_text(json.dumps({**known, "mark": "of another"}), "utf-8")
    runs.remove(run, home)
