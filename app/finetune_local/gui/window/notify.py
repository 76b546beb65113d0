"""Desktop notifications when a run or a job has ended, by a program of the system.

Texts are passed as arguments or in the environment, never as part of a script, as a run may have any name.
"""

from __future__ import annotations

import base64
import html
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from finetune_local.gui.i18n.strings import sentence
from finetune_local.system import paths

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context

NAME = "Finetune Local"
SECONDS = 2.0
"""Time between two checks."""

_PATIENCE = 15.0
_LONGEST = 300
_MAC = ("on run argv", "display notification (item 2 of argv) with title (item 1 of argv)", "end run")
_WINDOWS = r"""
$m = [Windows.UI.Notifications.ToastNotificationManager, Windows.UI.Notifications, ContentType = WindowsRuntime]
$t = $m::GetTemplateContent([Windows.UI.Notifications.ToastTemplateType]::ToastText02)
$n = $t.GetElementsByTagName('text')
$n.Item(0).AppendChild($t.CreateTextNode($env:FTL_TITLE)) | Out-Null
$n.Item(1).AppendChild($t.CreateTextNode($env:FTL_TEXT)) | Out-Null
$id = '{1AC14E77-02E7-4E5D-B744-2EB1AE5198B7}\WindowsPowerShell\v1.0\powershell.exe'
$m::CreateToastNotifier($id).Show([Windows.UI.Notifications.ToastNotification]::new($t))
"""

Which = Callable[[str], str | None]


def command(
    title: str, text: str, system: str = sys.platform, which: Which = shutil.which
) -> tuple[list[str], Mapping[str, str]] | None:
    """The command that shows a notification, and its environment variables; None if the system has no program for it."""
    if system == "darwin":
        script = [part for line in _MAC for part in ("-e", line)]
        return ["osascript", *script, title, text], {}
    if system == "win32":
        encoded = base64.b64encode(_WINDOWS.encode("utf-16-le")).decode("ascii")
        variables = {"FTL_TITLE": title, "FTL_TEXT": text}
        return ["powershell", "-NoProfile", "-NonInteractive", "-EncodedCommand", encoded], variables
    icon, body = str(paths.assets() / "ui" / "icon.png"), html.escape(text, quote=False)  # a body may hold markup
    if (found := which("notify-send")) is not None:
        return [found, f"--app-name={NAME}", f"--icon={icon}", "--", title, body], {}
    if (found := which("gdbus")) is not None:
        place = "org.freedesktop.Notifications"
        words = [json.dumps(word, ensure_ascii=False) for word in (title, body)]  # GVariant writes strings as JSON does
        return [
            found, "call", "--session", f"--dest={place}", f"--object-path=/{place.replace('.', '/')}",
            f"--method={place}.Notify", "--", json.dumps(NAME), "0", json.dumps(icon), *words, "[]", "{}", "-1",
        ], {}  # fmt: skip
    return None


def notify(title: str, text: str = "") -> bool:
    """Show a notification. Returns whether the system accepted it."""
    short = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    found = command(title, short)
    if found is None:
        return False
    arguments, more = found
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **more},
            timeout=_PATIENCE,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


class Notifier:
    """Shows a notification for each run or job that ends while the app runs, if the user's preferences say so."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ending = threading.Event()

    def start(self) -> None:
        """Start watching. Work that ended earlier is shown in the page only."""
        endings = self._context.endings
        endings.update()
        before = max((ended.number for ended in endings.since(0)), default=0)
        threading.Thread(target=self._watch, args=(before,), name="notify", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._ending.set()

    def _watch(self, last: int) -> None:
        context = self._context
        while not self._ending.wait(SECONDS):
            context.endings.update()
            for ended in context.endings.since(last):
                last = ended.number
                if context.preferences.notify:
                    notify(ended.title(context.t), sentence(context.t, ended.text(context.t)))
