"""SHA256SUMS: what it finds, and that replacing a file in a folder that has it is never seen as damage."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from finetune_local.system import checksums, files
from finetune_local.system.checksums import SUMS
from finetune_local.system.errors import DiskFull
from finetune_local.system.untrusted.text import ForeignTextError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    for name in ("a 一", "b", "inner/c"):
        (tmp_path / name).write_text(name, "utf-8")
    checksums.write(tmp_path, {"later": "0" * 64}, leave_out=("b",))
    return tmp_path


def test_all_files_are_listed(folder: Path) -> None:
    digest = hashlib.sha256("a 一".encode()).hexdigest()
    assert f"{digest}  a 一\n" in (folder / SUMS).read_text("utf-8")
    assert set(checksums.read(folder) or {}) == {"a 一", "inner/c", "later"}
    assert checksums.problem(folder) == "later is missing"


def test_a_large_folder_is_summed_by_several_threads(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 2**21)
    checksums.write(tmp_path)
    assert checksums.problem(tmp_path) is None
    (tmp_path / "b").write_bytes(b"b" * (2**21 - 1) + b"c")
    assert checksums.problem(tmp_path) == "b has changed since it was written: it does not match its checksum"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\xff\xfe", "cannot be read"),
        (b"abc  a\n", "line 1"),
        (b"0" * 64 + b"  /etc/passwd\n", "line 1"),
        (b"0" * 64 + b"  x/../../y\n", "line 1"),
        (b"0" * 64 + b"  a\n\n", "line 2"),
        (b" " * (2**20 + 1), "larger"),
    ],
)
def test_a_list_that_cannot_be(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / SUMS).write_bytes(content)
    with pytest.raises(ForeignTextError, match=said):
        checksums.read(tmp_path)
    assert said in (checksums.problem(tmp_path) or "")


def test_without_a_list_nothing_is_wrong(tmp_path: Path) -> None:
    assert checksums.read(tmp_path) is None and checksums.problem(tmp_path, ["needed"]) is None


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_a_replaced_file_fits_its_checksum_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    (tmp_path / "a").write_text("old", "utf-8")
    checksums.write(tmp_path)
    real, done = checksums.write_text, [0]

    def write(target: Path, text: str) -> None:
        if done[0] == cut:
            raise DiskFull("cut")
        done[0] += 1
        real(target, text)

    monkeypatch.setattr(checksums, "write_text", write)
    if cut < 3:
        with pytest.raises(DiskFull):
            checksums.rewrite(tmp_path, "a", "new")
    else:
        checksums.rewrite(tmp_path, "a", "new")
    assert checksums.problem(tmp_path) is None
    assert (tmp_path / "a").read_text("utf-8") == ("new" if cut > 1 else "old")
    assert not list(tmp_path.glob(files.ASIDE + "*"))


def test_rewriting_does_not_make_damage_look_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old", "utf-8")
    (tmp_path / SUMS).write_text("damaged", "utf-8")
    checksums.rewrite(tmp_path, "a", "new")
    assert checksums.problem(tmp_path) is not None
