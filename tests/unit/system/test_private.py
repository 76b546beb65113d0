"""The home is the user's alone, whatever the umask was; what was asked to be elsewhere has the rights that the user's umask gives."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_local.system import private
from finetune_local.system.paths import Home

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows keeps a user's folders from others by itself")


@pytest.fixture(autouse=True)
def _usual_umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(private.USER_UMASK, raising=False)
    monkeypatch.setattr(private, "_looked_at", set())
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def loose(root: Path) -> list[str]:
    return [str(p) for p in (root, *root.rglob("*")) if not p.is_symlink() and mode(p) & 0o077]


def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    heard: list[str] = []
    monkeypatch.setattr(private, "say", [heard.append])
    return heard


def old_home(root: Path) -> Path:
    """As an older version made it: anybody may read it."""
    (root / "chats").mkdir(parents=True)
    (root / "chats" / "one.jsonl").write_text("{}", "utf-8")
    (root / "runs" / "r" / "data").mkdir(parents=True)
    (root / "runs" / "r" / "data" / "train.ids").write_bytes(b"x")
    assert loose(root)
    return root


def test_a_new_home_is_closed_whatever_the_umask(tmp_path: Path) -> None:
    home = Home(tmp_path / "below" / "home")
    os.umask(0)
    assert mode(home.runs) == 0o700 and mode(home.root) == 0o700


def test_a_home_of_an_older_version_is_closed_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, root = said(monkeypatch), old_home(tmp_path / "home")
    elsewhere = tmp_path / "shared models"
    elsewhere.mkdir()
    (root / "models").symlink_to(elsewhere)
    program = root / "cache" / "helper"
    program.parent.mkdir()
    program.touch(0o755)
    assert Home(root).chats.is_dir()
    assert loose(root) == [] and mode(program) == 0o700
    assert mode(elsewhere) == 0o755  # what a link leads to is shared on purpose
    assert heard == [f"{root} was readable by other users of this machine. From now on, only you can read it."]
    monkeypatch.setattr(private, "_looked_at", set())  # the next start
    assert Home(root).runs.is_dir() and len(heard) == 1 and Home(root).open_to_others() == []


def test_beside_other_things_only_the_apps_folders_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, root = said(monkeypatch), old_home(tmp_path / "project")
    (root / "website").mkdir()
    assert Home(root).data.is_dir()
    assert mode(root) == mode(root / "website") == 0o755
    assert [p for part in ("chats", "runs", "data") for p in loose(root / part)] == []
    assert len(heard) == 1 and "other folders beside" in heard[0]
    assert Home(root).open_to_others() == []


def test_a_folder_that_many_use_stays_open(tmp_path: Path) -> None:
    root = tmp_path / "tmp"
    root.mkdir()
    root.chmod(0o1777)
    assert mode(Home(root).chats) == 0o700 and mode(root) == 0o1777


def test_a_disk_without_access_rights_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = old_home(tmp_path / "home")
    monkeypatch.setattr(Path, "chmod", lambda *_args, **_more: None)
    assert Home(root).open_to_others() == [root / "runs", root / "chats"]


def test_what_a_process_and_its_children_write_is_the_users_alone(tmp_path: Path) -> None:
    with private.writing_privately():
        (tmp_path / "mine").write_text("x", "utf-8")
        subprocess.run(["touch", tmp_path / "childs"], check=True)
        assert private.user_umask() == 0o022
        subprocess.run(["touch", tmp_path / "users"], check=True, umask=private.user_umask())
    (tmp_path / "after").touch()
    assert [mode(tmp_path / name) for name in ("mine", "childs", "users", "after")] == [0o600, 0o600, 0o644, 0o644]
    assert private.user_umask() == -1


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_what_was_asked_to_be_elsewhere_has_the_users_rights(tmp_path: Path, umask: int) -> None:
    os.umask(umask)
    home, out = tmp_path / "home", tmp_path / "out"
    with private.writing_privately():
        for folder in (out, home / "exports"):
            (folder / "inner").mkdir(parents=True)
            (folder / "inner" / "file").touch()
            private.share(folder, home)
    assert mode(out / "inner") == 0o777 & ~umask and mode(out / "inner" / "file") == 0o666 & ~umask
    assert loose(home / "exports") == []


def test_the_command_line_closes_a_home_and_doctor_shows_it(tmp_path: Path) -> None:
    root = old_home(tmp_path / "home")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "finetune_local", *arguments, "--home", str(root)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)

    first, second = run("runs"), run("runs")
    assert "From now on, only you can read it." in first.stderr and "only you" not in second.stderr
    assert loose(root) == []
    assert json.loads(run("doctor", "--json").stdout)["home_open_to_others"] == []
