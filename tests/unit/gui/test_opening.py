"""Opening a folder: the system's own program, no shell, and nothing but folders of results."""

from __future__ import annotations

import stat
import sys
import time
from pathlib import Path

import pytest

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.window import opening
from finetune_local.gui.window.opening import open_folder
from finetune_local.system.errors import SpecError

T = Strings("en")


@pytest.mark.skipif(sys.platform == "win32", reason="the program here is a shell script")
def test_a_folder_of_results_is_opened_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, told = tmp_path / "bin" / "xdg-open", tmp_path / "told"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > "{told}"\n', "utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(opening, "_program", lambda: "xdg-open")
    results = tmp_path / "导出 $(touch pwned); `x`"
    results.mkdir()
    (results / "m.gguf").write_bytes(b"x")
    open_folder(T, results / "m.gguf", [results])
    for _ in range(100):
        if told.exists() and told.read_text("utf-8"):
            break
        time.sleep(0.05)
    assert told.read_text("utf-8") == f"{results}|"
    assert not (tmp_path / "pwned").exists() and not Path("pwned").exists()


def test_nothing_else_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "exports"
    results.mkdir()
    (tmp_path / "documents").mkdir()
    (results / "link").symlink_to(tmp_path / "documents")
    for path in (tmp_path / "documents", results / ".." / "documents", results / "link", tmp_path):
        with pytest.raises(SpecError, match="not a folder of results"):
            open_folder(T, path, [results])
    with pytest.raises(SpecError, match="no longer exists"):
        open_folder(T, results / "gone" / "m.gguf", [results])
    monkeypatch.setattr(opening, "_program", lambda: "no-such-program-anywhere")
    with pytest.raises(SpecError, match="no file manager"):
        open_folder(T, results, [results])
