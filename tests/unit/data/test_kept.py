from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from finetune_local.data.readers.kept import harmless, keep, keep_copy
from finetune_local.system.errors import DiskFull
from finetune_local.system.paths import bad_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my data 数据.jsonl", "my data 数据.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\a.csv", "a.csv"),
        ("a\u202egnp.exe\n.csv", "agnp.exe.csv"),
        ('a<b>:"|?*.txt', "a_b______.txt"),
        ("...hidden", "data.hidden"),
        ("con.csv", "data con.csv"),
        ("", "data"),
        ("  .jsonl", "data.jsonl"),
        ("\ud83d.csv", "data.csv"),
    ],
)
def test_names_are_made_harmless(name: str, expected: str) -> None:
    assert harmless(name) == expected
    assert bad_name(harmless(name)) is None


def test_a_long_name_keeps_its_ending() -> None:
    made = harmless("长" * 300 + ".jsonl")
    assert made.endswith(".jsonl")
    assert len(made.encode()) <= 200


def test_no_file_takes_the_place_of_another(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()

    def dropped(text: str) -> Path:
        source = tmp_path / "upload"
        source.write_text(text, "utf-8")
        place = keep(source, folder, "a b.jsonl")
        assert not source.exists()
        return place

    assert dropped("one").name == "a b.jsonl"
    assert dropped("two").name == "a b (2).jsonl"
    assert dropped("one").name == "a b.jsonl", "the same file is there already"
    assert dropped("three").name == "a b (3).jsonl"
    assert sorted(file.read_text("utf-8") for file in folder.iterdir()) == ["one", "three", "two"]


def test_a_copy_leaves_its_source(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("x", "utf-8")
    folder = tmp_path / "data"
    folder.mkdir()
    assert keep_copy(source, folder, "a.jsonl") == keep_copy(source, folder, "a.jsonl") == folder / "a.jsonl"
    assert source.exists()


def test_a_file_from_another_disk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_disk(self: Path, target: Path) -> None:
        if target.name == "a.jsonl" and self.name == "upload":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        os.replace(self, target)  # noqa: PTH105 - the method itself is what is replaced

    monkeypatch.setattr(Path, "replace", other_disk)
    source = tmp_path / "upload"
    source.write_text("x", "utf-8")
    assert keep(source, tmp_path, "a.jsonl").read_text("utf-8") == "x"
    assert not source.exists()


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = tmp_path / "a.jsonl"
    source.write_text("x", "utf-8")
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(DiskFull, match="enter the file's path"):
        keep_copy(source, folder, "a.jsonl")
    assert list(folder.iterdir()) == []
