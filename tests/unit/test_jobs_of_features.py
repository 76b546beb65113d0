"""The jobs' own part: arguments in, results out, and where they can be stopped. What they call is tested where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_local.evaluation import job_evaluate
from finetune_local.evaluation.report import Choices
from finetune_local.export import job_export
from finetune_local.system.errors import SpecError, Stopped
from finetune_local.system.paths import Home
from made import made_adapter
from tiny import tiny_model


class Told:
    """A Reporter that records its texts, and raises Stopped at the text `until`."""

    def __init__(self, until: str = "") -> None:
        self.texts: list[str] = []
        self.until = until

    def __call__(self, text: str, done: float | None = None, **facts: Any) -> None:
        self.texts.append(text)
        if text == self.until:
            raise Stopped("stopped")

    def check(self) -> None: ...

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def stocked(home: Home) -> Home:
    tiny_model(home.models / "base")
    run = home.runs / "mine"
    made_adapter(home.models / "base", run / "adapter", run="mine")
    (run / "run.json").write_text(json.dumps({"model": {"id": "base"}}), "utf-8")
    return home


def test_an_export_is_made_and_told(stocked: Home, tmp_path: Path) -> None:
    told = Told()
    out = tmp_path / "exports" / "m.gguf"
    asked = {"adapter": "mine", "target": "gguf", "format": "q8_0", "out": str(out), "gate": False}
    result = job_export.run(asked, stocked, told)
    assert result["files"] == [str(out)] and result["bytes"] == out.stat().st_size
    assert result["gate"]["passed"] is None and "writing" in told.texts
    json.dumps(result)


def test_an_export_that_is_stopped_leaves_nothing(stocked: Home, tmp_path: Path) -> None:
    asked = {"adapter": "mine", "target": "merged", "out": str(tmp_path / "exports" / "m"), "gate": False}
    with pytest.raises(Stopped):
        job_export.run(asked, stocked, Told("merging"))
    assert list((tmp_path / "exports").iterdir()) == []


def test_choices_come_from_plain_json() -> None:
    given = json.loads(json.dumps({"data": ["a b.jsonl"], "few_shot": 2, "columns": ["q=user"], "limit": None}))
    assert job_evaluate.choices_of(given) == Choices(data=(Path("a b.jsonl"),), few_shot=2, columns=("q=user",))
    assert job_evaluate.choices_of({"examples": "e.jsonl"}).examples == Path("e.jsonl")
    assert job_evaluate.choices_of({}) == Choices()


def test_an_evaluation_that_is_asked_for_wrongly_is_a_sentence(home: Home) -> None:
    with pytest.raises(SpecError, match="shots"):
        job_evaluate.run({"shots": 3}, home, Told())
