"""An error with a sentence within a sentence is Chinese in the window, whichever way it came there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.widgets import parts
from finetune_local.runtime.job import Job
from finetune_local.runtime.rpc import RpcClient
from finetune_local.spec.run import parse_spec
from finetune_local.system.errors import FinetuneError, SpecError
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home
from finetune_local.training.events import Failed, Note
from finetune_local.training.run_folder import runs

CHINESE, ENGLISH = Strings("zh"), Strings("en")
NESTED = SpecError(msg("{place}: {error}", place="run.toml", error=msg("{name} is missing", name="a: b")))
SHOWN = "run.toml：a: b 不存在"


@pytest.fixture
def run(home: Home) -> runs.Run:
    return runs.create(home, parse_spec({"name": "r", "data": {"files": ["d.jsonl"]}}, "test"))


def test_through_an_event_on_the_disk(run: runs.Run) -> None:
    run.append(Failed.of(NESTED))
    line = json.loads(run.events_file.read_text("utf-8").splitlines()[-1])
    assert line["message"] == str(NESTED) and line["error"] == "SpecError"
    last = run.last_event()
    assert isinstance(last, Failed)
    assert sentence(CHINESE, last.message) == SHOWN and sentence(ENGLISH, last.message) == str(NESTED)
    raised = last.exception()
    assert isinstance(raised, FinetuneError) and sentence(CHINESE, raised) == SHOWN


def test_through_a_job(home: Home) -> None:
    folder = home.jobs / "20260101-000000-download"
    folder.mkdir(parents=True)
    job = Job(folder)
    job.append(Failed.of(NESTED))
    error = job.state().error
    assert error is not None and sentence(CHINESE, error.message) == SHOWN


def test_a_note_keeps_its_setting_value_and_reason(run: runs.Run) -> None:
    run.append(Note.chosen("training.batch_size", 8, msg("{name} is missing", name="x")))
    run.append(Note(text="as before"))
    chosen, plain = (event for event in run.history() if isinstance(event, Note))
    assert (chosen.setting, chosen.value, chosen.reason) == ("training.batch_size", 8, "x is missing")
    assert sentence(CHINESE, chosen.text) == "training.batch_size = 8（x 不存在）"
    assert set(plain.as_json()) == {"event", "time", "text"}


def test_a_line_of_an_older_version_shows_its_english(run: runs.Run) -> None:
    line = {"event": "note", "time": 1.0, "text": "training.batch_size = 8 (for 40 rows)"}
    with run.events_file.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    (told,) = (event for event in run.history() if isinstance(event, Note))
    assert sentence(CHINESE, told.text) == line["text"] and told.setting == ""


def test_from_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    client = RpcClient("answering", ("5",), tmp_path / "child.log")
    try:
        with pytest.raises(SpecError) as caught:
            client.call("nested")
    finally:
        client.close()
    assert sentence(CHINESE, caught.value) == SHOWN


def test_in_the_notice_of_a_page() -> None:
    assert SHOWN in str(parts.error_notice(CHINESE, NESTED))
    assert str(NESTED) in str(parts.error_notice(ENGLISH, NESTED))
