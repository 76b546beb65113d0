"""Jobs: their folder, their worker, and every way to end. A kind is added to the package for the test."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import finetune_local
from finetune_local.export.job_export import KIND as EXPORT
from finetune_local.runtime import jobs, kinds
from finetune_local.runtime.job import Began, Job, Progress
from finetune_local.runtime.kinds import JobKind, kind_of
from finetune_local.system.errors import DiskFull, SpecError
from finetune_local.system.paths import Home

KIND = """
import time
from finetune_local.runtime.kinds import JobKind
from finetune_local.system.errors import DataError

def run(arguments, home, report):
    do = arguments["do"]
    if do == "refuse":
        raise DataError("中文: the file is empty.")
    if do == "break":
        print("a last word", flush=True)
        return 1 / 0
    report.note("a note")
    for number in range(arguments.get("count", 3)):
        report("counting", number / 3)
        time.sleep(arguments.get("pause", 0))
    return {"counted": number + 1}

KIND = JobKind("made_for_tests", run)
"""


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobKind]:
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
    yield kind_of("made_for_tests")
    sys.modules.pop("finetune_local.more.job_made_for_tests", None)
    kinds._modules.cache_clear()


def ended(one: Job, seconds: float = 30) -> Job:
    until = time.monotonic() + seconds
    while one.alive() and time.monotonic() < until:
        time.sleep(0.02)
    return one


def test_a_job_is_done_and_tells_its_result(home: Home, kind: JobKind) -> None:
    one = ended(jobs.start(home, kind, {"do": "count", "名": "值"}))
    state = one.state()
    assert (state.status, state.result, state.notes) == ("finished", {"counted": 3}, ("a note",))
    assert Job(one.folder).arguments == {"do": "count", "名": "值"}
    assert jobs.every(home) == [one] and jobs.running(home) == []


def test_a_mistake_of_the_user_is_a_sentence_and_a_defect_has_its_trace(home: Home, kind: JobKind) -> None:
    refused = ended(jobs.start(home, kind, {"do": "refuse"})).state()
    assert refused.status == "failed" and refused.error is not None
    assert (refused.error.error, refused.error.message) == ("DataError", "中文: the file is empty.")
    broken = ended(jobs.start(home, kind, {"do": "break"})).state()
    assert broken.error is not None and "ZeroDivisionError" in broken.error.traceback and broken.error.error == ""


def test_it_stops_where_it_is_asked_and_can_be_started_again(home: Home, kind: JobKind) -> None:
    one = jobs.start(home, kind, {"do": "count", "count": 200, "pause": 0.05})
    assert [found.name for found in jobs.running(home, kind)] == [one.name]
    with pytest.raises(SpecError, match="still running"):
        jobs.remove(one)
    one.ask_to_stop()
    assert ended(one).status() == "stopped"
    jobs.restart(one, home)
    assert one.status() == "running"
    one.ask_to_stop()
    ended(one)
    jobs.remove(one)
    assert jobs.every(home) == []


def test_a_killed_one_has_failed_and_says_that_it_was_killed(home: Home, kind: JobKind) -> None:
    one = jobs.start(home, kind, {"do": "count", "count": 200, "pause": 0.05})
    pid = one.worker_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    state = ended(one).state()
    assert (state.status, state.killed) == ("failed", True)
    assert state.error is not None and "Start it again" in state.error.message


def test_a_damaged_job_at_work_ends_no_look_at_those_at_work(home: Home) -> None:
    place = Job(home.jobs / "1-export")
    place.folder.mkdir()
    (place.folder / "job.json").write_text("{", "utf-8")
    place.worker_file.write_text("{}", "utf-8")
    with place.locked():
        assert place.alive() and jobs.running(home) == [] == jobs.running(home, EXPORT)


def test_what_a_killed_delete_left_is_removed(home: Home) -> None:
    left = home.jobs / ".writing-1-export"
    left.mkdir()
    os.utime(left, (0, 0))
    jobs.prune(home)
    assert not left.exists()


def test_progress_has_the_time_left(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home.jobs / "by-hand"
    folder.mkdir()
    (folder / "job.json").write_text('{"kind": "x", "arguments": {}, "created": 0}', "utf-8")
    one = Job(folder)
    one.append(Began(time=time.time() - 30))
    one.append(Progress(text="working", done=0.75))
    monkeypatch.setattr(Job, "alive", lambda _self: True)
    state = one.state()
    assert state.seconds_left == pytest.approx(10, rel=0.01) and state.done == 0.75


def test_an_unknown_kind_and_a_name_that_leads_elsewhere_are_refused(home: Home) -> None:
    with pytest.raises(SpecError, match="no job"):
        jobs.start(home, kind_of("nothing"), {})
    for name in ("../runs", "none", ""):
        with pytest.raises(SpecError):
            jobs.find(home, name)


def test_events_of_versions_before_the_rebuild_are_read(home: Home) -> None:
    folder = home.jobs / "20260101-000000-download"
    folder.mkdir()
    (folder / "job.json").write_text('{"kind": "download", "arguments": {"what": "m"}, "created": 0}', "utf-8")
    one = Job(folder)
    one.events_file.write_text(
        '{"event": "began", "time": 1.0}\n'
        '{"event": "progress", "time": 2.0, "text": "writing", "done": null}\n'
        '{"event": "stopped", "time": 3.0}\n',
        "utf-8",
    )
    assert one.status() == "paused" and one.state().text == "writing"  # a download continues where it stopped
    with one.events_file.open("a", encoding="utf-8") as file:
        file.write('{"event": "began", "time": 4.0}\n{"event": "done", "time": 5.0, "result": {"name": "m"}}\n')
    assert one.status() == "finished" and one.state().result == {"name": "m"}
    with one.events_file.open("a", encoding="utf-8") as file:
        file.write('{"event": "failed", "time": 6.0, "error": "DiskFull", "message": "no room", "traceback": ""}\n')
    error = one.state().error
    assert one.status() == "failed" and error is not None and isinstance(error.exception(), DiskFull)


def test_every_kind_is_declared_under_its_modules_name() -> None:
    assert {"download", "evaluate", "export", "extract"} <= set(kinds.kinds())
    assert all(kind_of(key).key == key for key in kinds._modules())
