"""Words on the desktop: nothing of them is taken for a command, and they come only where they are wanted."""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.shell.ended import Ended
from finetune_local.gui.window import notify
from finetune_local.runtime.status import ProcessState, Status
from finetune_local.training.run_folder.runs import Run

NASTY = "-o $(touch x) '; rm -rf \"` <b>好</b> & \\ %s"


def ended_run(number: int, name: str, status: Status, message: str = "") -> Ended:
    run = Run(Path(name))
    return Ended(number, run, run.kind, ProcessState(status), message)


def none(_: str) -> None:
    return None


def test_texts_are_arguments_or_environment() -> None:
    arguments, more = notify.command(NASTY, NASTY, "darwin") or pytest.fail("nothing")
    assert arguments[0] == "osascript" and arguments[-2:] == [NASTY, NASTY] and not more
    arguments, more = notify.command(NASTY, NASTY, "win32") or pytest.fail("nothing")
    assert NASTY not in " ".join(arguments) and set(more.values()) == {NASTY}
    assert "CreateTextNode($env:FTL_TEXT)" in base64.b64decode(arguments[-1]).decode("utf-16-le")
    arguments, _ = notify.command(NASTY, NASTY, "linux", lambda name: f"/usr/bin/{name}") or pytest.fail("nothing")
    assert arguments[0] == "/usr/bin/notify-send" and arguments[-3:-1] == ["--", NASTY]
    assert arguments[-1] == NASTY.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    only_gdbus = notify.command(NASTY, "x", "linux", lambda name: name if name == "gdbus" else None)
    arguments, _ = only_gdbus or pytest.fail("nothing")
    assert json.loads(arguments[arguments.index("--") + 4]) == NASTY
    assert notify.command("a", "b", "linux", none) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the program is a script")
def test_the_program_gets_them_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "notify-send"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/told\n', "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert notify.notify("“run 1” 训练完成", "x" * 1000)
    told = (tmp_path / "told").read_text("utf-8").splitlines()
    assert told[-2] == "“run 1” 训练完成" and len(told[-1]) == 300 and told[-1].endswith("…")
    assert Path(next(line for line in told if line.startswith("--icon=")).removeprefix("--icon=")).is_file()
    program.write_text("#!/bin/sh\nexit 1\n", "utf-8")
    assert not notify.notify("x")


def test_it_tells_what_ends_while_it_runs_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(notify, "notify", lambda *words: told.append(words))
    monkeypatch.setattr(notify, "SECONDS", 0.01)
    ended = [ended_run(1, "before", Status.FINISHED)]
    endings = SimpleNamespace(update=lambda: None, since=lambda number: [e for e in ended if e.number > number])
    context: Any = SimpleNamespace(endings=endings, t=Strings("zh"), preferences=SimpleNamespace(notify=True))
    notifier = notify.Notifier(context)
    notifier.start()
    ended.append(ended_run(2, "夜间", Status.FAILED, "no space is left."))
    until = time.monotonic() + 10
    while not told and time.monotonic() < until:
        time.sleep(0.01)
    context.preferences.notify = False
    ended.append(ended_run(3, "x", Status.FINISHED))
    time.sleep(0.1)
    notifier.stop()
    assert told == [("“夜间”训练失败", "no space is left.")]
