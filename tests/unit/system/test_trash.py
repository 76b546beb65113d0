"""What is removed can be taken back until the trash is emptied."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from finetune_local.cli.main import main
from finetune_local.system import trash
from finetune_local.system.errors import DiskFull, RunError
from finetune_local.system.paths import Home


def made(home: Home, name: str) -> Path:
    folder = home.runs / name
    folder.mkdir()
    (folder / "run.json").write_text("{}", "utf-8")
    return folder


def test_there_and_back_also_in_a_home_that_was_moved(home: Home, tmp_path: Path) -> None:
    folder = made(home, "名字 with space")
    removed = trash.throw(home, "run", "名字 with space", folder)
    assert not folder.exists() and removed.bytes_on_disk == 2
    assert trash.every(home) == [removed] and trash.every(home, "adapter") == []
    elsewhere = Home(tmp_path / "moved")
    home.root.rename(elsewhere.root)
    found = trash.every(elsewhere, "run")[0]
    assert found.source == elsewhere.runs / "名字 with space"
    trash.put_back(found, found.source)
    assert (elsewhere.runs / "名字 with space" / "run.json").exists() and list(elsewhere.trash.iterdir()) == []


def test_the_newest_comes_first_and_two_of_a_moment_are_two(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    for name in ("a", "b"):
        trash.throw(home, "run", name, made(home, name))
    assert [removed.name for removed in trash.every(home)] == ["b", "a"]


def test_damaged_entries_are_passed_over_and_emptied(home: Home) -> None:
    kept = trash.throw(home, "run", "a", made(home, "a"))
    (home.trash / "20250101-000000-000000").mkdir()
    (home.trash / "20250101-000000-000001").mkdir()
    (home.trash / "20250101-000000-000001" / trash.FACTS).write_text("[]", "utf-8")
    assert trash.every(home) == [kept]
    assert trash.empty(home, [kept]) == 1
    assert trash.every(home) == [] and len(list(home.trash.iterdir())) == 2
    assert trash.empty(home) == 2
    assert list(home.trash.iterdir()) == []


@pytest.mark.parametrize(("number", "said"), [(errno.EXDEV, "another disk"), (errno.EACCES, "Close the programs")])
def test_what_the_system_refuses_stays_where_it_is(
    home: Home, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    folder = made(home, "a")
    real = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path == folder:
            raise OSError(number, "refused")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(RunError, match=said):
        trash.throw(home, "run", "a", folder)
    assert folder.exists() and list(home.trash.iterdir()) == []


def test_a_full_disk_says_how_to_make_room(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(home, "a")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trash, "write_text", full)
    with pytest.raises(DiskFull, match="Empty the trash"):
        trash.throw(home, "run", "a", folder)
    assert folder.exists() and list(home.trash.iterdir()) == []


def test_what_lay_inside_a_renamed_folder_goes_back_to_the_new_one(home: Home) -> None:
    folder = made(home, "old")
    (folder / "adapter").mkdir()
    trash.throw(home, "adapter", "old", folder / "adapter")
    trash.follow(home, folder, home.runs / "new")
    assert trash.every(home)[0].source == home.runs / "new" / "adapter"


def test_the_verb_lists_and_empties(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code == 0
        return capsys.readouterr().out

    trash.throw(home, "run", "一", made(home, "一"))
    assert json.loads(told("trash", "--json"))[0]["name"] == "一"
    assert "一" in told("trash")
    assert json.loads(told("trash", "empty", "--yes", "--json")) == {"deleted": 1}
    assert json.loads(told("trash", "--json")) == []
    shutil.rmtree(home.trash)
