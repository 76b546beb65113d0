"""What a handler of the page raises is shown: what the user can mend as a sentence, a defect with its traceback."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_local.gui.shell.context import Context
from finetune_local.system.errors import SpecError
from finetune_local.system.paths import Home

pytest.importorskip("gradio")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SpecError("give another name."), "give another name."),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "/é"), "too long"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/root/x"), "/root/x"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space is left"),
    ],
)
def test_what_the_user_can_mend_is_a_sentence(
    home: Home, capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    context = Context(home)
    context.notice = "notice"

    def fail(_window: Any) -> None:
        raise error

    shown = context.guarded(fail, [])(SimpleNamespace(session_hash="a"), None)
    assert words in str(shown["notice"])
    assert "Traceback" not in str(shown["notice"]) + capsys.readouterr().err


def test_anything_else_is_a_defect_with_its_traceback(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    context = Context(home)
    context.notice = "notice"
    shown = context.guarded(lambda _window: 1 // 0, [])(SimpleNamespace(session_hash="a"), None)
    assert "ZeroDivisionError" in str(shown["notice"]) and "Traceback" in capsys.readouterr().err
