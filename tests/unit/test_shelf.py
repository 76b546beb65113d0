"""Renaming: a run, its adapter and whatever names them go on as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_local import shelf
from finetune_local.adapters import library, manage
from finetune_local.adapters.identity import rewrite
from finetune_local.chat.opening import trained_raw
from finetune_local.errors import AdapterError, SpecError
from finetune_local.paths import Home
from finetune_local.spec.run import parse_spec
from finetune_local.train import facts, runs
from finetune_local.train.events import Finished
from made import made_adapter


def finished(home: Home, tiny: Path, name: str, made_from: str | None = None) -> runs.Run:
    tables = {"name": name, "model": {"id": str(tiny)}, "data": {"files": ["/x/d.jsonl"], "template": "raw"}}
    run = runs.create(home, parse_spec(tables, "test"), made_from=made_from)
    made_adapter(tiny, run.adapter, run=name)
    made_adapter(tiny, run.checkpoints / "step-000004", run=name)
    run.append(Finished(reason="done", summary={"run": name, "adapter": str(run.adapter), "last_loss": 0.5}))
    return run


def test_everything_that_names_a_run_follows(home: Home, tiny: Path) -> None:
    run = finished(home, tiny, "old")
    finished(home, tiny, "later", made_from="old")
    made_adapter(tiny, home.adapters / "small")
    rewrite(home.adapters / "small", extracted_from={"adapter": "old", "run": "old"})
    before = (run.folder / "run.json").stat().st_mtime_ns
    manage.remove("old", home)

    entry_gone = runs.find(home, "old")
    renamed = shelf.rename_run(entry_gone, "新 name", home)
    assert manage.restore(None, home).name == "新 name", "what was removed before goes back to where the run is now"
    assert renamed.spec.name == "新 name" and (renamed.folder / "run.json").stat().st_mtime_ns == before
    told = facts.facts_of(renamed)
    assert (told["run"], told["adapter"], told["last_loss"]) == ("新 name", str(renamed.adapter), 0.5)
    entry = library.entry("新 name", home)
    assert entry.identity is not None and entry.identity.run == "新 name"
    checkpoint = library.read_identity(renamed.checkpoints / "step-000004")
    assert checkpoint is not None and checkpoint.run == "新 name"
    assert runs.find(home, "later").made_from == "新 name"
    assert library.entry("small", home).extracted_from["run"] == "新 name"
    assert library.base_of(library.find("新 name", home)) == str(tiny)
    assert trained_raw(library.find("新 name", home))
    with pytest.raises(AdapterError, match="no adapter 'old'"):
        library.find("old", home)


def test_by_its_adapter_a_run_is_renamed_too(home: Home, tiny: Path) -> None:
    finished(home, tiny, "old")
    made_adapter(tiny, home.adapters / "friend", plain=True)
    assert shelf.rename_adapter("old", "new", home).origin == "run"
    assert shelf.rename_adapter("friend", "pal", home).origin == "imported"
    assert [run.name for run in runs.every(home)] == ["new"]


@pytest.mark.parametrize("name", ["friend", "base", "a/b", "other"])
def test_names_that_are_taken_or_impossible(home: Home, tiny: Path, name: str) -> None:
    finished(home, tiny, "old")
    runs.create(home, parse_spec({"name": "other", "data": {"files": ["x"]}}, "test"))
    made_adapter(tiny, home.adapters / "friend", plain=True)
    with pytest.raises((AdapterError, SpecError)):
        shelf.rename_adapter("old", name, home)
    assert runs.find(home, "old").spec.name == "old"


def test_a_damaged_run_can_be_renamed_and_removed_and_taken_back(home: Home) -> None:
    run = runs.create(home, parse_spec({"name": "bad", "data": {"files": ["x"]}}, "test"))
    (run.folder / "run.json").write_text("{", "utf-8")
    renamed = shelf.rename_run(run, "worse", home)
    assert facts.facts_of(renamed)["status"] == "damaged"
    runs.remove(renamed, home)
    assert runs.every(home) == []
    assert runs.restore("worse", home).folder == home.runs / "worse"
    assert json.loads(renamed.asked_file.read_text("utf-8"))["name"] == "bad"
    with pytest.raises(SpecError, match="in the trash"):
        runs.restore("worse", home)
