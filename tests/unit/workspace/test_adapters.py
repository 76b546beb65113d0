"""Renaming: a run, its adapter and whatever names them go on as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_local.adapters import library, manage
from finetune_local.adapters.companions import trained_raw
from finetune_local.adapters.identity import rewrite
from finetune_local.evaluation import store
from finetune_local.spec.run import parse_spec
from finetune_local.system.errors import AdapterError, RunError, SpecError
from finetune_local.system.paths import Home
from finetune_local.training.events import Finished
from finetune_local.training.run_folder import facts, runs
from finetune_local.workspace import adapters as shelf
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
    assert (told.run, told.adapter, told.last_loss) == ("新 name", str(renamed.adapter), 0.5)
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
    assert facts.facts_of(renamed).damaged
    runs.remove(renamed, home)
    assert runs.every(home) == []
    assert runs.restore("worse", home).folder == home.runs / "worse"
    assert json.loads(renamed.user_settings_file.read_text("utf-8"))["name"] == "bad"
    with pytest.raises(SpecError, match="in the trash"):
        runs.restore("worse", home)


def evaluation(home: Home, adapter: str, number: int, created: float) -> None:
    interval = {"mean": 0.9, "low": 0.8, "high": 1.0}
    measured = {"loss": 1.0, "loss_interval": interval, **dict.fromkeys(("exact", "contains", "f1"), interval)}
    result = {"rows": 4, "base": measured, "tuned": measured, "metric": "exact", "verdict": {"text": str(number)}}
    folder = home.evaluations / f"{adapter}-{number}"
    folder.mkdir()
    text = json.dumps({**result, "adapter": adapter, "created_time": created})
    (folder / "result.json").write_text(text, "utf-8")


def test_the_list_has_the_newest_scores_and_they_follow_a_new_name(home: Home, tiny: Path) -> None:
    finished(home, tiny, "old")
    made_adapter(tiny, home.adapters / "friend", plain=True)
    for number, created in ((1, 50.0), (2, 99.0), (3, 70.0)):
        evaluation(home, "old", number, created)
    (home.evaluations / "damaged-1").mkdir()
    (home.evaluations / "damaged-1" / "result.json").write_text("{", "utf-8")
    known = shelf.Shelf(home)
    scores = {facts["name"]: facts["scores"] for facts in known.listing()}
    assert scores["friend"] is None and scores["old"]["verdict"] == "2"
    shelf.rename_adapter("old", "new", home)
    scores = {facts["name"]: facts["scores"] for facts in known.listing()}
    assert scores["new"]["verdict"] == "2" and scores["new"]["tuned"]["exact"]["mean"] == 0.9
    assert store.every(home, "new")[0].scores().verdict == "2" and store.every(home, "old") == []


def test_several_go_together_or_not_at_all(home: Home, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        finished(home, tiny, name)
    monkeypatch.setattr(runs.Run, "alive", lambda run: run.name == "b")
    with pytest.raises(SpecError, match="is running"):
        shelf.remove_runs(["a", "b"], home)
    assert len(runs.every(home)) == 2
    monkeypatch.setattr(runs.Run, "alive", lambda _: False)
    removed = shelf.remove_runs(["a", "b"], home)
    assert runs.every(home) == []
    assert shelf.put_back([one.key for one in removed], home) == ["a", "b"]
    adapters = shelf.remove_adapters(["a", "b"], home)
    assert shelf.put_back([one.key for one in adapters], home) == ["a", "b"]
    with pytest.raises(RunError, match="no longer in the trash"):
        shelf.put_back([adapters[0].key], home)
