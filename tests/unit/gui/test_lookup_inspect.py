"""What the lookup process answers on data: some rows at once, all of it as it comes, left and gone on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_local.gui.lookups import inspect
from finetune_local.runtime.rpc import RpcRequest
from finetune_local.system.errors import SpecError
from finetune_local.system.paths import Home


class RecordedRequest(RpcRequest):
    """A request whose events are kept, and that is left after so many asks whether it is."""

    def __init__(self, leave_after: int = 10**9, **values: Any) -> None:
        self.told: list[dict[str, Any]] = []
        super().__init__({"id": 1, **values}, self.told.append)
        self._left = leave_after

    def cancelled(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.fixture
def many(tmp_path: Path) -> dict[str, Any]:
    """Settings with a file of 3000 rows."""
    path = tmp_path / "viele 多.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"q{i}", "completion": f"a{i}"}) + "\n" for i in range(3000)), "utf-8"
    )
    return {"files": [str(path)]}


def test_rows_come_with_their_tokens(many: dict[str, Any], home: Home, tiny: Path) -> None:
    asked = RecordedRequest(settings=many, model=str(tiny), what="rows", first=2990, count=20, row=5)
    told = inspect.answer(asked, home)
    assert [row["answer"] for row in told["rows"]] == [f"a{i}" for i in range(2990, 3000)]
    assert told["end"] and told["model"] == str(tiny) and told["model_problem"] == ""
    assert "".join(text for text, learned, _ in told["masks"]["5"]["pieces"] if learned).startswith("a5")


def test_a_long_look_tells_of_its_first_rows_and_can_be_left(
    many: dict[str, Any], home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "PROGRESS_SECONDS", 0.0)
    first = RecordedRequest(leave_after=10, settings=many, model="", what="all")
    left = inspect.answer(first, home)
    assert not left["complete"] and 0 < left["report"]["used"] < 1000
    again = RecordedRequest(settings=many, model="", what="all")
    whole = inspect.answer(again, home)
    assert whole["complete"] and whole["report"]["used"] == 3000, "it goes on where it was, and counts nothing twice"
    samples = [event for event in again.told if event["event"] == "sample"]
    assert len(samples) == 1 and samples[0]["found"]["report"]["used"] >= inspect.SAMPLE_ROWS
    assert set(samples[0]["found"]) == set(whole)
    shares = [event["done"] for event in again.told if event["event"] == "progress"]
    assert shares == sorted(shares) and shares[0] > 0
    at_once = RecordedRequest(settings=many, model="", what="all")
    assert inspect.answer(at_once, home) == whole and at_once.told == []


def test_a_file_that_has_changed_is_read_anew(many: dict[str, Any], home: Home) -> None:
    assert inspect.answer(RecordedRequest(settings=many, model="", what="all"), home)["report"]["used"] == 3000
    Path(many["files"][0]).write_text('{"prompt": "a", "completion": "b"}\n', "utf-8")
    assert inspect.answer(RecordedRequest(settings=many, model="", what="all"), home)["report"]["used"] == 1


def test_a_model_that_is_not_here_is_told_and_the_rows_are_shown(many: dict[str, Any], home: Home) -> None:
    told = inspect.answer(RecordedRequest(settings=many, model="none/such", what="rows", first=0, count=2, row=0), home)
    assert told["model"] == "" and told["model_missing"] and "not installed" in told["model_problem"]
    assert [row["tokens"] for row in told["rows"]] == [None, None]


def test_settings_are_checked(home: Home) -> None:
    with pytest.raises(SpecError, match="max_length"):
        inspect.answer(RecordedRequest(settings={"files": ["a"], "max_length": "x"}, model="", what="all"), home)
