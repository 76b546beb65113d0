"""Jobs: their folder, their process, and every way to end. The kind is put into the package for the test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import finetune_local
from finetune_local.runtime import job, kinds
from finetune_local.runtime.job import Job
from finetune_local.system.errors import SpecError
from finetune_local.system.paths import Home

KIND = """
import time
from finetune_local.system.errors import DataError

def run(arguments, home, tell):
    do = arguments["do"]
    if do == "refuse":
        raise DataError("中文: the file is empty.")
    if do == "break":
        print("a last word", flush=True)
        return 1 / 0
    tell.note("a note")
    for number in range(arguments.get("count", 3)):
        tell("counting", number / 3)
        time.sleep(arguments.get("pause", 0))
    return {"counted": number + 1}
"""


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A kind that the job's own process finds too."""
    folder = tmp_path / "more kinds"
    (folder / "more").mkdir(parents=True)
    (folder / "more" / "__init__.py").touch()
    (folder / "more" / "job_made_for_tests.py").write_text(KIND, "utf-8")
    (folder / "sitecustomize.py").write_text(
        f"import finetune_local\nfinetune_local.__path__.append({str(folder)!r})\n", "utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(finetune_local, "__path__", [*finetune_local.__path__, str(folder)])
    kinds._modules.cache_clear()
    yield "made_for_tests"
    kinds._modules.cache_clear()


def ended(one: Job, seconds: float = 30) -> Job:
    until = time.monotonic() + seconds
    while one.alive() and time.monotonic() < until:
        time.sleep(0.02)
    return one


def test_a_job_is_done_and_tells_its_result(home: Home, kind: str) -> None:
    one = ended(job.start(home, kind, {"do": "count", "名": "值"}))
    state = one.state()
    assert (state.status, state.result, state.notes) == ("done", {"counted": 3}, ("a note",))
    assert Job(one.folder).arguments == {"do": "count", "名": "值"}
    assert job.every(home) == [one] and job.running(home) == []


def test_a_mistake_of_the_user_is_a_sentence_and_a_defect_has_its_trace(home: Home, kind: str) -> None:
    refused = ended(job.start(home, kind, {"do": "refuse"})).state()
    assert refused.status == "failed" and refused.error is not None
    assert (refused.error["error"], refused.error["message"]) == ("DataError", "中文: the file is empty.")
    broken = ended(job.start(home, kind, {"do": "break"})).state()
    assert broken.error is not None and "ZeroDivisionError" in broken.error["traceback"] and broken.error["error"] == ""


def test_it_stops_where_it_is_asked_and_can_be_started_again(home: Home, kind: str) -> None:
    one = job.start(home, kind, {"do": "count", "count": 200, "pause": 0.05})
    assert [found.name for found in job.running(home, kind)] == [one.name]
    with pytest.raises(SpecError, match="still at work"):
        job.forget(one)
    one.stop()
    assert ended(one).status() == "stopped"
    job.again(one, home)
    assert one.status() == "running"
    one.stop()
    ended(one)
    job.forget(one)
    assert job.every(home) == []


def test_a_killed_one_is_told_as_interrupted(home: Home, kind: str) -> None:
    one = job.start(home, kind, {"do": "count", "count": 200, "pause": 0.05})
    pid = one.worker_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    state = ended(one).state()
    assert state.status == "interrupted" and state.error is not None and "Start it again" in state.error["message"]


def test_a_damaged_job_at_work_ends_no_look_at_those_at_work(home: Home) -> None:
    place = Job(home.jobs / "1-export")
    place.folder.mkdir()
    (place.folder / "job.json").write_text("{", "utf-8")
    place.worker_file.write_text("{}", "utf-8")
    with place.locked():
        assert place.alive() and job.running(home) == [] == job.running(home, "export")


def test_what_a_killed_delete_left_is_removed(home: Home) -> None:
    left = home.jobs / ".writing-1-export"
    left.mkdir()
    os.utime(left, (0, 0))
    job.prune(home)
    assert not left.exists()


def test_progress_has_the_time_left(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home.jobs / "by-hand"
    folder.mkdir()
    (folder / "job.json").write_text('{"kind": "x", "arguments": {}, "created": 0}', "utf-8")
    one = Job(folder)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now - 30)
    one.append("began")
    monkeypatch.setattr("time.time", lambda: now)
    one.append("progress", text="working", done=0.75)
    monkeypatch.setattr(Job, "alive", lambda _self: True)
    state = one.state()
    assert state.seconds_left == pytest.approx(10, rel=0.01) and state.done == 0.75


def test_an_unknown_kind_and_a_name_that_leads_elsewhere_are_refused(home: Home) -> None:
    with pytest.raises(SpecError, match="no job"):
        job.start(home, "nothing", {})
    for name in ("../runs", "none", ""):
        with pytest.raises(SpecError):
            job.find(home, name)
