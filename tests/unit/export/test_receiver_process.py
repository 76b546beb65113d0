"""How the end of a receiver's process is understood: a crash on what it was given is a failure, not a check that was left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from finetune_local.export.engines.process import Request, read_reply, run_receiver

REQUEST = Request(Path("nowhere"), "float32", "cpu", (), (), (), (), 0)


@pytest.mark.parametrize("how", ["os.abort()", "os.kill(os.getpid(), 11)", "sys.exit(3)", "os._exit(0)"])
def test_a_process_that_dies_on_an_export_has_failed(how: str, tmp_path: Path) -> None:
    script = tmp_path / "open it.py"
    script.write_text(f"import os, sys\nprint('here', flush=True)\n{how}\n", "utf-8")
    heard = run_receiver(script, (), REQUEST)
    assert heard.failed.startswith("its process ended with exit code") and "here" in heard.failed
    assert not heard.absent


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL there")
def test_one_that_the_system_killed_for_its_memory_was_not_asked(tmp_path: Path) -> None:
    script = tmp_path / "open it.py"
    script.write_text("import os\nos.kill(os.getpid(), 9)\n", "utf-8")
    heard = run_receiver(script, (), REQUEST)
    assert "exit code -9" in heard.absent and not heard.failed


def test_a_program_that_is_not_installed_was_not_asked(tmp_path: Path) -> None:
    heard = run_receiver(tmp_path / "x.py", ("no_such_library_here",), REQUEST)
    assert heard.absent == "no_such_library_here is not installed"
    (tmp_path / "reply.json").write_text('{"error": "ValueError: wrong"}', "utf-8")
    assert read_reply(tmp_path, 0, "").failed == "ValueError: wrong"
