"""Evaluations on disk: kept whole or not at all, found again, thrown away and taken back; and how long one will take."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_local.evaluation import evaluate as expect
from finetune_local.evaluation import store
from finetune_local.evaluation.compare import Interval
from finetune_local.evaluation.report import Choices, evaluate
from finetune_local.evaluation.store import Saved
from finetune_local.inference.engine import Opened
from finetune_local.system import files
from finetune_local.system.errors import DiskFull, SpecError


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    file = tmp_path / "held out 留出.jsonl"
    rows = [{"prompt": f"say {w}", "completion": w} for w in ["好", "ok", "no", "是的"] * 4]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return file


def kept(opened: Opened, file: Path, **more: Any) -> Saved:
    choices = Choices(data=(file,), few_shot=2, **more)
    done = evaluate(opened, choices, lambda _n, _d: None, lambda _t: None)
    return store.save(opened, choices, done, 1.5)


def test_what_was_measured_is_found_again(opened: Opened, held_out: Path) -> None:
    saved = kept(opened, held_out)
    assert saved.name == "mine-1"
    found = store.find(opened.home, "mine-1")
    result = found.result
    assert (result["adapter"], result["model"], result["rows"], result["examples"]) == (
        "mine",
        opened.model.name,
        14,
        2,
    )
    assert result["choices"]["data"] == [str(held_out)] and result["choices"]["few_shot"] == 2
    assert result["verdict"]["sentences"][0].startswith("The fine-tune helped")
    assert result["seconds"]["loading"] == 1.5 and {"base", "few_shot", "tuned"} <= set(result["seconds"])
    assert found.conditions() == ["base", "few_shot", "tuned"]
    assert len(found.rows) == 14
    row = found.rows[0]
    assert row.answers["tuned"].text == row.reference and row.prompt[-1] == ("user", f"say {row.reference}")
    assert found.intervals("tuned")["exact"] == Interval(1.0, 1.0, 1.0)


def test_the_library_gets_the_newest_of_an_adapter(opened: Opened, held_out: Path) -> None:
    assert store.every(opened.home, "mine") == []
    kept(opened, held_out)
    kept(opened, held_out, limit=5)
    opened.adapters["mine-1"] = opened.adapters["mine"]  # a name that begins as another's evaluations do
    scores = store.every(opened.home, "mine")[0].scores()
    assert (scores.evaluation, scores.rows) == ("mine-2", 5)
    assert scores.measured["tuned"]["exact"].mean == 1.0 and scores.measured["base"]["exact"].low >= 0.0
    assert "fine-tune helped" in scores.verdict
    assert store.every(opened.home, "mine-1") == []
    assert [saved.name for saved in store.every(opened.home)] == ["mine-2", "mine-1"]


def test_a_bare_base_is_kept_under_its_name(opened: Opened, held_out: Path) -> None:
    opened.activate(None)
    saved = kept(opened, held_out)
    assert (
        saved.adapter is None and saved.name == f"{opened.model.name}-1" and saved.conditions() == ["base", "few_shot"]
    )


def test_a_full_disk_leaves_nothing(opened: Opened, held_out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(DiskFull, match="evaluate again"):
        kept(opened, held_out)
    assert list(opened.home.evaluations.iterdir()) == []


def test_damaged_ones_are_no_trouble_to_the_others(opened: Opened, held_out: Path) -> None:
    kept(opened, held_out)
    for name, text in (("broken-1", "{"), ("broken-2", "[]"), ("broken-3", "{}")):
        folder = opened.home.evaluations / name
        folder.mkdir()
        (folder / "result.json").write_text(text, "utf-8")
    (opened.home.evaluations / "half-1").mkdir()  # its process was killed
    assert [saved.name for saved in store.every(opened.home)] == ["mine-1"]
    with pytest.raises(SpecError, match="cannot be read"):
        _ = store.find(opened.home, "broken-1").result


def test_thrown_away_and_taken_back(opened: Opened, held_out: Path) -> None:
    kept(opened, held_out)
    removed = store.throw_away(opened.home, "mine-1")
    assert store.every(opened.home) == []
    with pytest.raises(SpecError, match="evaluation 'mine-1' no longer exists"):
        store.find(opened.home, "mine-1")
    kept(opened, held_out, limit=3)  # takes the name
    assert store.put_back(removed, opened.home).name == "mine-1-2"
    assert len(store.every(opened.home)) == 2
    with pytest.raises(SpecError, match="no longer exists"):
        store.throw_away(opened.home, "../runs")


def test_how_long_it_will_take_follows_from_earlier_ones(opened: Opened, held_out: Path) -> None:
    model = opened.model.name
    assert expect.seconds_of(opened.home, model, 10, 2, tuned=True) is None
    saved = kept(opened, held_out)
    result = saved.result | {"rows": 10, "examples": 2}
    result["seconds"] = {"loading": 3.0, "base": 10.0, "few_shot": 30.0, "tuned": 20.0}
    (saved.folder / "result.json").write_text(json.dumps(result), "utf-8")
    assert expect.seconds_of(opened.home, model, 20, 2, tuned=True) == pytest.approx(3 + 20 * (1 + 3 + 2))
    assert expect.seconds_of(opened.home, model, 20, 5, tuned=True) == pytest.approx(3 + 20 * (1 + 6 + 2))
    assert expect.seconds_of(opened.home, model, 20, 0, tuned=False) == pytest.approx(3 + 20)
    assert expect.seconds_of(opened.home, "another", 20, 2, tuned=True) is None
    assert expect.rows_of(None, [held_out], None) == (16, False)
    assert expect.rows_of(None, [held_out], 5) == (5, False)
    assert expect.rows_of(None, [], None) == (None, False)
