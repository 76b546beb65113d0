"""The keys of `adapters ... --json`, in their order: programs read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_local.cli.main import main
from finetune_local.system.paths import Home
from made import made_adapter

ENTRY = [
    "name", "origin", "folder", "base", "method", "rank", "parameters", "whole", "run", "made_from", "extracted_from", "files", "step",
    "created", "created_time", "bytes", "note", "beside",
]  # fmt: skip


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], home: Home, tiny: Path) -> Any:
    """Call a verb of `adapters` with --json, in a home with an adapter "small"; returns what it prints."""
    made_adapter(tiny, home.adapters / "small")

    def call(*words: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["adapters", *words, "--json"])
        assert not ended.value.code
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def test_keys_of_adapters_list(printed: Any) -> None:
    assert [list(one) for one in printed("list")] == [[*ENTRY, "problem", "brings"]]


def test_keys_of_adapters_info(printed: Any) -> None:
    found = printed("info", "small")
    assert list(found) == [*ENTRY, "modules", "settings", "mergeable", "brings"]
    assert (found["name"], found["origin"]) == ("small", "folder")


def test_keys_of_adapters_import(printed: Any, tiny: Path, tmp_path: Path) -> None:
    found = printed("import", str(made_adapter(tiny, tmp_path / "friend 朋友")))
    assert list(found) == ENTRY
    assert found["name"] == "friend 朋友"


def test_keys_of_adapters_rename(printed: Any, home: Home) -> None:
    found = printed("rename", "small", "改名")
    assert list(found) == ENTRY
    assert (found["name"], found["folder"]) == ("改名", str(home.adapters / "改名"))


def test_keys_of_adapters_note_and_restore(printed: Any) -> None:
    assert list(printed("note", "small", "for orders")) == ENTRY
    assert list(printed("remove", "small")) == ["name", "trash"]
    found = printed("restore", "small")
    assert list(found) == ENTRY and found["note"] == "for orders"
