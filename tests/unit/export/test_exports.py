"""Exports of all windows: begun once, named apart, cleaned up after, and only into folders that can be written."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune_local.export import job_export
from finetune_local.runtime import jobs
from finetune_local.runtime.job import Job, Progress
from finetune_local.runtime.kinds import JobKind
from finetune_local.system import paths, preferences
from finetune_local.system.errors import SpecError
from finetune_local.system.paths import Home
from working import mark_running, release

started: list[Mapping[str, Any]] = []


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A job that is begun counts as at work in this very process, which is slow to begin it."""
    monkeypatch.setenv(paths.CONFIG_VARIABLE, str(tmp_path / "config"))
    started.clear()

    def begin(home: Home, kind: JobKind, arguments: Mapping[str, Any]) -> Job:
        time.sleep(0.05)
        started.append(arguments)
        folder = home.jobs / f"{len(started)}-{kind.key}"
        folder.mkdir()
        asked = {"kind": kind.key, "arguments": dict(arguments), "created": time.time()}
        (folder / "job.json").write_text(json.dumps(asked), "utf-8")
        mark_running(Job(folder))
        return Job(folder)

    monkeypatch.setattr(jobs, "start", begin)


def begin(home: Home, quant: str = "q8_0", folder: str = "") -> Job:
    return job_export.start(home, "mine", None, "gguf", quant, folder, "base-mine")


def test_two_windows_at_once_begin_one(home: Home) -> None:
    found: list[Job] = []
    threads = [threading.Thread(target=lambda: found.append(begin(home))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1 and len({known.name for known in found}) == 1
    begin(home, "f16")
    assert len(started) == 2


def test_names_count_up_and_the_preferred_folder_is_taken(home: Home, tmp_path: Path) -> None:
    first = Path(begin(home).arguments["out"])
    assert first == home.root / "exports" / "base-mine-Q8_0.gguf"
    preferences.save(exports=str(tmp_path / "我的 exports"))
    (tmp_path / "我的 exports").mkdir()
    (tmp_path / "我的 exports" / "base-mine-Q8_0.gguf").write_bytes(b"GGUF")
    second = Path(begin(home).arguments["out"])
    assert second == tmp_path / "我的 exports" / "base-mine-Q8_0-2.gguf"
    assert job_export.places(home) == [second.parent, first.parent]


def test_a_folder_that_cannot_be_written_is_a_sentence(home: Home, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    for folder, words in (("relative", "not an absolute path"), (str(tmp_path / "file" / "x"), "cannot be created")):
        with pytest.raises(SpecError, match=words):
            begin(home, folder=folder)
    assert started == []


def test_what_a_killed_one_left_goes_with_the_next_or_with_its_entry(home: Home) -> None:
    first = begin(home)
    out = Path(first.arguments["out"])
    half = out.with_name(out.name + ".unchecked")
    half.write_bytes(b"half")
    with pytest.raises(SpecError, match="still running"):
        job_export.remove(home, first.name)
    assert half.exists()
    release(first)
    first.append(Progress(text="writing", done=0.5))
    begin(home, "f16")
    assert not half.exists()
    half.write_bytes(b"half")
    job_export.remove(home, first.name)
    assert not half.exists() and not first.folder.exists()
