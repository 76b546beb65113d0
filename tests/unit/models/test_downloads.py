"""Downloads as jobs, with real child processes and a hub on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_local.models import job_download
from finetune_local.models.install import installed
from finetune_local.runtime import jobs
from finetune_local.runtime.events import Event
from finetune_local.runtime.job import Began, Job, JobState, Progress, StoppedByUser
from finetune_local.runtime.process_folder import Tail
from finetune_local.system import paths, preferences
from finetune_local.system.errors import ModelError, SpecError
from finetune_local.system.paths import Home
from hubserver import Hub, serving
from tiny import tiny_model


@pytest.fixture
def hub(tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "served") as made:
        monkeypatch.setenv("HF_ENDPOINT", made.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv(paths.CONFIG_VARIABLE, str(tmp_path / "config"))
        yield made
        for found in jobs.running(home):
            found.kill()
            found.wait_for_exit()


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(found: Job) -> JobState:
    until(lambda: found.status() in ("finished", "failed", "paused") and not found.alive())
    return found.state()


def test_one_download_for_all_who_ask_paused_and_gone_on_with(hub: Hub, home: Home) -> None:
    hub.pause = 0.2
    begun: list[Job] = []
    asking = [threading.Thread(target=lambda: begun.append(job_download.start("some/tiny", home))) for _ in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len({found.name for found in begun}) == 1
    found = begun[0]
    until(lambda: found.state().facts.get("here", 0) > 20_000)
    facts = found.state().facts
    assert facts["total"] == sum(f.stat().st_size for f in hub.folder.iterdir())
    assert found.state().text.startswith("model-0")
    began = time.monotonic()
    job_download.pause(found.name, home)
    assert time.monotonic() - began < job_download._PATIENCE
    assert found.status() == "paused"
    assert [f.name for f in job_download.unfinished(home)] == [found.name]
    parts = sum(f.stat().st_size for f in (home.cache / "downloads").glob("*.part"))
    assert 20_000 < parts < facts["total"]

    hub.log.clear()
    hub.pause = 0.0
    assert job_download.resume(found.name, home).name == found.name
    assert ended(found).status == "finished"
    assert any("range" in headers for headers in hub.asked("/blob/", "cdn"))
    assert job_download.result_of(found.name, home) == "tiny"
    assert job_download.unfinished(home) == []
    kept = "".join(f.read_text("utf-8") for f in found.folder.iterdir() if f.is_file())
    assert "hf_secret" not in kept


def test_a_killed_one_is_interrupted_and_goes_on(hub: Hub, home: Home) -> None:
    hub.pause = 0.2
    found = job_download.start("some/tiny", home)
    until(lambda: found.state().facts.get("here", 0) > 20_000)
    found.kill()
    assert ended(found).killed
    hub.pause = 0.0
    assert job_download.start("some/tiny", home).name == found.name
    assert ended(found).status == "finished"
    assert installed(home.models) == ["tiny"]


def test_giving_up_leaves_nothing(hub: Hub, home: Home) -> None:
    hub.pause = 0.2
    found = job_download.start("some/tiny", home)
    until(lambda: found.state().facts.get("here", 0) > 20_000)
    job_download.cancel(found.name, home)
    assert not list((home.cache / "downloads").iterdir())
    assert jobs.every(home) == []
    assert job_download.result_of(found.name, home) is None
    with pytest.raises(SpecError, match="no longer exists"):
        job_download.cancel(found.name, home)


def test_what_fails_says_why_and_can_be_tried_again(hub: Hub, home: Home) -> None:
    hub.gated, hub.token_has_access = True, False
    found = job_download.start("some/tiny", home)
    state = ended(found)
    assert state.error is not None
    assert state.error.error == "ModelError"
    assert "your token has no access" in state.error.message
    hub.token_has_access = True
    assert job_download.start("some/tiny", home).name == found.name
    assert ended(found).status == "finished"
    assert found.state().error is None


def test_a_folder_is_copied_by_a_job_and_mistakes_are_told_at_once(hub: Hub, home: Home, tmp_path: Path) -> None:
    stick = tiny_model(tmp_path / "my 模型")
    found = job_download.add(f' "{stick}" ', home, copy=True)
    assert isinstance(found, Job)
    assert ended(found).status == "finished"
    assert job_download.result_of(found.name, home) == "my 模型"
    with pytest.raises(ModelError, match="is not in the list"):
        job_download.start("nothing", home)
    with pytest.raises(ModelError, match="file or folder not found"):
        job_download.start(str(tmp_path / "gone"), home)
    preferences.save(offline=True)
    with pytest.raises(ModelError, match="stay offline"):
        job_download.start("some/tiny", home)
    assert [f.name for f in jobs.every(home)] == [found.name]


def test_a_folder_is_used_where_it_lies_and_what_is_no_model_is_told_at_once(
    hub: Hub, home: Home, tmp_path: Path
) -> None:
    stick = tiny_model(tmp_path / "my 模型")
    found = job_download.add(str(stick), home, copy=False)
    assert isinstance(found, list)
    assert [f.use for f in found] == [str(stick)]
    (tmp_path / "text.txt").write_text("x", "utf-8")
    (tmp_path / "empty").mkdir()
    for path, says in (("text.txt", "not a GGUF"), ("gone", "folder not found"), ("empty", "config.json")):
        for copy in (False, True):
            with pytest.raises(ModelError, match=says):
                job_download.add(str(tmp_path / path), home, copy=copy)
    with pytest.raises(ModelError, match="enter the path"):
        job_download.add("  ", home, copy=False)
    assert jobs.every(home) == []


def test_thousands_of_lines_are_read_once(hub: Hub, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home.jobs / "20250101-000000-download"
    folder.mkdir()
    (folder / "job.json").write_text('{"kind": "download", "arguments": {"what": "a/b"}, "created": 1}', "utf-8")
    found = Job(folder)
    found.append(Began())
    for done in range(50):
        found.append(Progress(text="x", done=done / 50, facts={"here": done}))
    read: list[int] = []
    tail = Tail.read

    def counted(self: Tail) -> list[Event]:
        events = tail(self)
        read.append(len(events))
        return events

    monkeypatch.setattr(Tail, "read", counted)
    assert found.state().facts == {"here": 49}
    found.append(StoppedByUser())
    assert Job(folder).state().status == "paused"
    assert read == [51, 1]
