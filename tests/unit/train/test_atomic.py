"""Folders appear whole or not at all, whatever ends the writing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from finetune_local.errors import DiskFull
from finetune_local.train.atomic import sweep, write_folder, write_text


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text("utf-8") for p in folder.iterdir()}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter 适配器"
    write_folder(target, lambda place: (place / "a").write_text("1", "utf-8") and None)
    write_folder(target, lambda place: (place / "b").write_text("2", "utf-8") and None)
    assert contents(target) == {"b": "2"}
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_what_stood_there(tmp_path: Path, code: int) -> None:
    target = tmp_path / "adapter"
    write_folder(target, lambda place: (place / "a").write_text("1", "utf-8") and None)

    def fail(place: Path) -> None:
        (place / "a").write_text("half", "utf-8")
        raise OSError(code, "No space left on device")

    with pytest.raises(DiskFull, match=r"is full.*resume"):
        write_folder(target, fail)
    assert contents(target) == {"a": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_another_error_is_not_called_a_full_disk(tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        raise PermissionError(errno.EACCES, "denied")

    with pytest.raises(PermissionError):
        write_folder(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_sweep_after_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    old = tmp_path / ".writing-old-adapter"
    old.mkdir()
    (old / "a").write_text("1", "utf-8")
    (tmp_path / ".writing-adapter").mkdir()
    sweep(tmp_path)
    assert contents(tmp_path / "adapter") == {"a": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_write_text_replaces(tmp_path: Path) -> None:
    write_text(tmp_path / "t", "一")
    write_text(tmp_path / "t", "二")
    assert contents(tmp_path) == {"t": "二"}
