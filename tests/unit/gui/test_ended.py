"""What ended is noticed once, also what ended while no app was there; what the user stopped is not told."""

from __future__ import annotations

import json
import time

import pytest

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.shell import ended
from finetune_local.gui.shell.ended import Endings
from finetune_local.runtime.job import Finished, Job, StoppedByUser
from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training import events
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.runs import Run
from working import mark_running, release


@pytest.fixture(autouse=True)
def _look_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ended, "_MIN_SECONDS", -1.0)


def new_run(home: Home, name: str) -> Run:
    run = runs.create(home, parse_spec({"name": name, "data": {"files": ["x.jsonl"]}}, "test"))
    mark_running(run)
    return run


def new_job(home: Home, kind: str) -> Job:
    job = Job(home.jobs / f"20260101-{kind}")
    job.folder.mkdir()
    (job.folder / "job.json").write_text(
        json.dumps({"kind": kind, "arguments": {"what": "m", "out": "/x"}, "created": time.time()}), "utf-8"
    )
    mark_running(job)
    return job


def told(endings: Endings, since: int = 0) -> list[tuple[str, str, str]]:
    endings.update()
    return [(e.kind.key, e.name, "killed" if e.state.killed else e.state.status) for e in endings.since(since)]


def test_a_run_that_ends_is_told_once(home: Home) -> None:
    endings = Endings(home)
    run = new_run(home, "夜间 run")
    assert told(endings) == []
    run.append(events.Finished(reason="all epochs", summary={}))
    release(run)
    assert told(endings) == [("run", "夜间 run", "finished")]
    assert told(endings) == [("run", "夜间 run", "finished")]
    assert told(endings, since=1) == []


def test_how_it_ended_is_told(home: Home) -> None:
    endings = Endings(home)
    failed, killed, stopped, gone = (new_run(home, name) for name in ("failed", "killed", "stopped", "gone"))
    job, undone, halted = (new_job(home, kind) for kind in ("export", "download", "evaluate"))
    assert told(endings) == []
    failed.append(events.Failed(error="DiskFull", message="no space is left.", exit_code=1))
    killed.append(events.Note(text="running"))
    stopped.append(events.StoppedByUser(step=3, summary={}))
    job.append(Finished(result={}))
    undone.append(events.Failed(error="DownloadFailed", message="it broke off."))
    halted.append(StoppedByUser())
    release(failed, killed, stopped, job, undone, halted, gone)
    (gone.folder / "run.json").unlink()
    assert told(endings) == [
        ("download", "20260101-download", "failed"),
        ("export", "20260101-export", "finished"),
        ("run", "failed", "failed"),
        ("run", "killed", "killed"),
    ]
    found, t = {e.name: e for e in endings.since(0)}, Strings("en")
    assert found["failed"].text(t) == "no space is left."
    assert found["killed"].title(t) == "Training “killed” was interrupted"
    assert "can be resumed" in found["killed"].text(t)
    assert found["20260101-download"].title(t) == "The download failed"
    assert found["20260101-download"].text(t) == "it broke off."


def test_what_ended_while_no_app_was_there_is_told_by_the_next(home: Home) -> None:
    run = new_run(home, "long")
    assert told(Endings(home)) == []
    run.append(events.Finished(reason="all epochs", summary={}))
    release(run)
    after = Endings(home)
    assert told(after) == [("run", "long", "finished")]
    assert told(Endings(home)) == []


@pytest.mark.parametrize("text", ["", "[1]", "{}", '[["run"]]', '[["run", 3]]', '[["job", "../../x"]]'])
def test_a_damaged_list_of_what_was_at_work_is_none(home: Home, text: str) -> None:
    (home.window / "at_work.json").write_text(text, "utf-8")
    assert told(Endings(home)) == []


@pytest.mark.parametrize("line", ['{"event": "no such"}', "not JSON", "[]"])
def test_a_damaged_run_takes_nothing_with_it(home: Home, line: str) -> None:
    endings = Endings(home)
    run, other = new_run(home, "damaged"), new_run(home, "other")
    told(endings)
    run.events_file.write_text(line + "\n", "utf-8")
    other.append(events.Finished(reason="all epochs", summary={}))
    release(run)
    release(other)
    assert ("run", "other", "finished") in told(endings)


def test_every_kind_of_job_has_its_words() -> None:
    from finetune_local.runtime.kinds import kinds

    for language in ("en", "zh"):
        t = Strings(language)  # type: ignore[arg-type]
        for kind in kinds():
            assert t.get(f"ended.{kind}_finished") and t.get(f"ended.{kind}_failed"), kind


def test_every_kind_of_job_and_every_run_has_a_page() -> None:
    from finetune_local.gui.shell.pages import RUN, page_showing, pages
    from finetune_local.runtime.kinds import kinds

    for kind in (RUN, *kinds()):
        assert kind in pages()[page_showing(kind)].shows, kind


def test_an_error_leads_to_the_page_where_it_is_solved(home: Home) -> None:
    pytest.importorskip("gradio")
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.main import create_app
    from finetune_local.system.errors import DataError, SpecError

    context = Context(home)
    create_app(context)
    assert 'data-value="data"' in context.problem(DataError("x: no rows."))
    assert 'data-do="go"' not in context.problem(SpecError("x"))
