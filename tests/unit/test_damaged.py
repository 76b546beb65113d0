"""What cannot be read of the app's own things is told with its reason, can be removed, and hides none of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_local.chat import conversations, history
from finetune_local.evaluation import store
from finetune_local.export.job_export import KIND as EXPORT
from finetune_local.models.job_download import KIND as DOWNLOAD
from finetune_local.runtime import jobs
from finetune_local.runtime.job import Job
from finetune_local.spec.config_file import read_config
from finetune_local.spec.run import parse_spec
from finetune_local.system import trash
from finetune_local.system.errors import DamagedRun, SpecError
from finetune_local.system.paths import Home, home, located
from finetune_local.training.events import EVENTS, Finished
from finetune_local.training.run_folder import facts, runs

BROKEN = (
    b"\xff\xfe",
    b"[1]",
    b"",
    b'{"a": ' + b"9" * 5000 + b"}",
    b"[" * 200_000,
    b'{"kind": 3, "created": 1e999}',
    b"null",
)


@pytest.fixture(params=BROKEN, ids=range(len(BROKEN)))
def broken(request: pytest.FixtureRequest) -> bytes:
    """Bytes that are none of the app's files."""
    content: bytes = request.param
    return content


def test_a_run(home: Home, broken: bytes) -> None:
    for name in ("good", "bad"):
        run = runs.create(home, parse_spec({"name": name, "data": {"files": ["x"]}}, "test"))
        run.append(Finished(reason="r", summary={"steps": 3, "last_loss": 0.5}))
    (run.folder / "run.json").write_bytes(broken)
    told = {one.run: one for one in facts.all_facts(home)}
    assert told["good"].status == "finished" and told["good"].last_loss == 0.5
    assert told["bad"].damaged and "run.json" in (told["bad"].problem or "")
    with pytest.raises((SpecError, DamagedRun), match=r"run\.json"):
        _ = run.spec
    runs.remove(run, home)
    assert [one.run for one in facts.all_facts(home)] == ["good"]


def test_events_of_a_run(home: Home, broken: bytes) -> None:
    run = runs.create(home, parse_spec({"name": "a", "data": {"files": ["x"]}}, "test"))
    run.append(Finished(reason="r", summary={"steps": 3, "last_loss": 0.5}))
    lines = (broken, b'{"event": ["x"], "summary": {"steps": []}}', b'{"event": "step", "step": "x", "loss": {}}')
    with run.events_file.open("ab") as file:
        file.write(b"".join(line + b"\n" for line in lines))
    (run.folder / "worker.json").write_bytes(b'{"pid": Infinity, "started": 1e308}')
    told = facts.all_facts(home)[0]
    json.dumps(told.as_json())
    assert told.run == "a" and not isinstance(told.last_loss, dict) and not isinstance(told.steps, list)
    assert [type(event) for event in run.history()] == [Finished]


@pytest.mark.parametrize(
    ("line", "sound"),
    [
        ({"event": "validation", "step": 1, "loss": 2, "best": True}, True),
        ({"event": "validation", "step": 1, "loss": "2", "best": True}, False),
        ({"event": "validation", "step": True, "loss": 2.0, "best": True}, False),
        ({"event": "validation", "step": 1, "loss": 2.0, "best": 1}, False),
        ({"event": "finished", "reason": "r", "summary": []}, False),
        ({"event": ["finished"]}, False),
        ({"event": "phase", "name": "x", "done": None}, True),
    ],
)
def test_an_event_is_of_its_fields_types(line: dict[str, Any], sound: bool) -> None:
    assert (EVENTS.read(line) is not None) is sound


def asked(home: Home, name: str, content: bytes) -> Job:
    folder = home.jobs / name
    folder.mkdir()
    (folder / "job.json").write_bytes(content)
    return Job(folder)


def test_a_job(home: Home, broken: bytes) -> None:
    good = {"kind": "export", "arguments": {"out": "/x"}, "created": 1.0}
    asked(home, "20260101-000000-export", json.dumps(good).encode())
    bad = asked(home, "20260102-000000-export", broken)
    asked(home, "20260103-000000-export", json.dumps({**good, "arguments": {"out": 5}}).encode())
    assert [one.name for one in jobs.every(home, EXPORT)] == ["20260101-000000-export"]
    told = jobs.damaged(home, EXPORT)
    assert [one.name for one in told] == ["20260103-000000-export", "20260102-000000-export"]
    assert all("job.json" in one.problem for one in told) and jobs.damaged(home, DOWNLOAD) == []
    bad.events_file.write_bytes(broken + b'\n{"event": "progress"}\n{"event": "note", "text": 3}\n{"event": {}}\n')
    assert bad.state().notes == () and bad.process_state().killed
    jobs.remove(jobs.find(home, bad.name))
    assert len(jobs.damaged(home)) == 1 and jobs.running(home) == []


def test_an_evaluation(home: Home, broken: bytes) -> None:
    span = {"mean": 0.5, "low": 0.4, "high": 0.6}
    measured = {"loss_interval": span, "exact": span, "contains": span, "f1": span}
    good = {
        "rows": 3,
        "metric": "f1",
        "verdict": {"text": "t"},
        "base": measured,
        "adapter": "a",
        "model": "m",
        "created_time": 5.0,
    }
    for name, content in (
        ("good", json.dumps(good).encode()),
        ("bad", broken),
        ("odd", json.dumps({**good, "base": {**measured, "f1": {"mean": "x"}}}).encode()),
    ):
        (home.evaluations / name).mkdir()
        (home.evaluations / name / "result.json").write_bytes(content)
    assert [one.name for one in store.every(home)] == ["good"]
    assert [one.name for one in store.damaged(home)] == ["bad", "odd"]
    store.throw_away(home, "bad")
    assert [one.name for one in store.damaged(home)] == ["odd"]


def test_a_conversation(home: Home, broken: bytes) -> None:
    (home.chats / "good.jsonl").write_text('{"role": "user", "content": "hi"}\n{"role": 3, "content": []}\n', "utf-8")
    (home.chats / "bad.jsonl").write_bytes(broken or b"x")
    told = {one.id: one for one in map(history.summary, history.every(home))}
    assert told["good"].turns == 1 and "bad.jsonl" in (told["bad"].problem or "")
    assert [one.id for one in conversations.listed(home)] == ["good"]
    assert [one.name for one in conversations.damaged(home)] == ["bad"]
    conversations.remove(home, "bad")
    assert conversations.damaged(home) == []


def test_an_entry_of_the_trash(home: Home, broken: bytes) -> None:
    for name, content in (("1", b'{"kind": "run", "name": "x", "from": "runs/x", "when": 7}'), ("2", broken)):
        (home.trash / name / "run").mkdir(parents=True)
        (home.trash / name / "trash.json").write_bytes(content)
    assert [one.name for one in trash.every(home)] == ["x"] and [one.name for one in trash.damaged(home)] == ["2"]
    assert trash.empty(home) == 2


@pytest.mark.parametrize("name", ["run.json", "run.toml"])
def test_a_file_of_settings(tmp_path: Path, broken: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(broken or b"\x00")
    with pytest.raises(SpecError, match=name):
        parse_spec(read_config(tmp_path / name), str(tmp_path / name))


def test_a_text_that_no_path_can_be() -> None:
    for text in ("a\0b", "\ud800"):
        with pytest.raises(SpecError, match="is not allowed in names or paths"):
            parse_spec({"data": {"files": [text]}}, "test")


def test_the_home_of_nobody_is_a_sentence() -> None:
    with pytest.raises(SpecError, match="no user with that name"):
        home("~nosuchuser_here/x")
    assert located("~nosuchuser_here/x") == Path("~nosuchuser_here/x")
