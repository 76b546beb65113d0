"""Folders appear whole or not at all, whatever ends the writing."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from finetune_local.system import files
from finetune_local.system.errors import DiskFailed, DiskFull
from finetune_local.system.files import failure, free_bytes, sweep, write_text, written_aside


def write_folder(target: Path, **files: str) -> None:
    with written_aside(target, "Then resume.") as place:
        place.mkdir()
        for name, text in files.items():
            (place / name).write_text(text, "utf-8")


def contents(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text("utf-8") for p in folder.iterdir()}


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter 适配器"
    write_folder(target, a="1")
    write_folder(target, b="2")
    assert contents(target) == {"b": "2"}
    assert [p.name for p in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_what_stood_there(tmp_path: Path, code: int) -> None:
    target = tmp_path / "adapter"
    write_folder(target, a="1")

    with pytest.raises(DiskFull, match=r"no space is left.*resume"), written_aside(target, "Then resume.") as place:
        place.mkdir()
        (place / "a").write_text("half", "utf-8")
        raise OSError(code, "No space left on device")
    assert contents(target) == {"a": "1"}
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_drive_that_cannot_sync_folders_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_folder(tmp_path / "adapter", a="1")
    assert contents(tmp_path / "adapter") == {"a": "1"}


def test_an_error_of_a_library_is_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot open the model"), written_aside(tmp_path / "x", ""):
        raise OSError("cannot open the model")
    with pytest.raises(DiskFull), written_aside(tmp_path / "x", ""):
        raise OSError("4096 requested and 12 written")  # in numpy's words


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EIO, "may be failing"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "has no permission to do that"),
        (errno.EMFILE, "too many files"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.ESTALE, "the disk is not available"),
    ],
)
def test_what_else_a_disk_refuses_is_a_sentence_and_not_called_full(tmp_path: Path, code: int, said: str) -> None:
    target = tmp_path / "x"
    target.write_text("old", "utf-8")
    with (
        pytest.raises(DiskFailed, match=f"{said}.*Everything saved earlier is intact") as failed,
        written_aside(target, "Then resume."),
    ):
        raise OSError(code, os.strerror(code))
    assert not isinstance(failed.value, DiskFull) and str(target) in str(failed.value)
    assert contents(tmp_path) == {"x": "old"}


def test_an_error_names_the_file_it_is_about(tmp_path: Path) -> None:
    with pytest.raises(DiskFailed, match=r"^other\.csv cannot be"), written_aside(tmp_path / "x", ""):
        raise PermissionError(errno.EACCES, "denied", "other.csv")


@pytest.mark.parametrize("able", [True, False])
def test_a_folder_takes_the_place_of_another_and_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    """In one step where the system can; `able` False is an old system, or a disk that has no such thing."""
    if not able:
        monkeypatch.setattr(files, "_call", lambda: (None, 0, 0))
    target = tmp_path / "adapter"
    write_folder(target, a="1")
    write_folder(target, a="2")
    assert contents(target) == {"a": "2"} and [p.name for p in tmp_path.iterdir()] == ["adapter"]
    files.remove(target)
    target.write_text("a file", "utf-8")
    write_folder(target, a="3")
    assert contents(target) == {"a": "3"} and [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_failing_clean_up_does_not_hide_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(DiskFailed, match="may be failing"), written_aside(tmp_path / "x", ""):
        monkeypatch.setattr(files, "remove", removed)
        raise OSError(errno.EIO, "Input/output error")


def test_what_is_discarded_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "step-000003", a="1", b="2")
    monkeypatch.setattr(files.shutil, "rmtree", lambda _: None)  # killed right after the first step
    files.discard(tmp_path / "step-000003")
    assert not (tmp_path / "step-000003").exists()
    monkeypatch.undo()
    sweep(tmp_path)
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


def test_safetensors_own_error_for_a_full_disk_is_known(tmp_path: Path) -> None:
    """Its Rust side raises no OSError; a real size limit in a child process shows what it raises."""
    script = (
        "import resource, signal, numpy as np, sys\nfrom pathlib import Path\n"
        "from safetensors.numpy import save_file\nfrom finetune_local.system.files import written_aside\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with written_aside(Path(sys.argv[1]) / 'x', 'Then resume.') as place:\n"
        "    place.mkdir()\n    save_file({'a': np.zeros(10000)}, place / 'a.safetensors')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, encoding="utf-8", check=False
    )
    assert "DiskFull: no space is left" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_free_space_of_a_folder_that_is_not_made_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_bytes(tmp_path / "not" / "yet") == pytest.approx(free_bytes(tmp_path), rel=0.05)
    monkeypatch.setattr(Path, "exists", lambda _: False)  # as on a Windows drive that is not there: it must end
    assert free_bytes(tmp_path / "not" / "yet") > 0


def test_what_could_not_be_begun_is_called_by_its_folder(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".writing-new"))
    assert str(failure(error, tmp_path, "")).startswith(f"{tmp_path} cannot be written")
    (tmp_path / ".writing-new").mkdir()
    assert str(failure(error, tmp_path, "")).startswith(f"{tmp_path / '.writing-new'} cannot be written")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fcntl")
@pytest.mark.parametrize("knows", [True, False])
def test_on_a_mac_the_drive_s_own_memory_is_emptied_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows: bool
) -> None:
    import fcntl

    full, asked = 51, list[str]()

    def command(_descriptor: int, number: int) -> int:
        assert number == full
        if not knows:
            raise OSError(errno.ENOTSUP, "Operation not supported")
        asked.append("full")
        return 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", full, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", command)
    monkeypatch.setattr(os, "fsync", lambda _: asked.append("plain"))
    files.sync(tmp_path)
    assert asked == ["full" if knows else "plain"]
