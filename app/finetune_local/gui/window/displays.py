"""The ways to show the page, each a separate process, so that nothing of theirs can take the server with it: the system's WebView,
Chromium without its bars, the user's browser.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune_local.gui.window import chromium, opening
from finetune_local.runtime.start import command_of
from finetune_local.system.errors import DiskFailed
from finetune_local.system.files import write_text
from finetune_local.system.paths import Home
from finetune_local.system.process import Process
from finetune_local.system.untrusted.text import read_json_object

_NO_CONSOLE = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_NO_WINDOW = 3
_YOUNG = 10.0
"""Seconds: a window that breaks sooner would break again."""

_MOST_AGAIN = 3
_SILENT = 45.0
"""Seconds after which a window that has not asked for its page hangs: its libraries wait for something of the desktop's."""

_GENTLE = 4.0
"""Seconds that a window has to close by itself."""


@dataclass(frozen=True)
class Outcome:
    """How it was with a window: closed by the user; or not there for a reason, `again` where another try makes sense; or
    `shown` by a process that will not tell when it is closed."""

    closed: bool
    reason: str = ""
    again: bool = False
    shown: bool = False


class Display(Protocol):
    """A way to show the page."""

    def present(self, link: str) -> Outcome:
        """Show it, and wait until it is gone."""
        ...

    def show(self, link: str) -> bool:
        """Bring it to the front (or show another, by the link); False where there is none."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class WebView:
    """The window of window.py. `told` is all it is told besides the link; `opened` says whether it has asked for its page."""

    def __init__(self, home: Home) -> None:
        self._log = home.window / "window.log"
        self._file = home.window / "window.json"
        self._process: subprocess.Popen[str] | None = None
        self._broken = 0
        self.told: Mapping[str, Any] = {}
        self.opened: Callable[[], bool] = lambda: True

    def begin(self) -> None:
        """Start its process, which loads its libraries while the server does too. present() says what to show."""
        self._end_orphan()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command_of("finetune_local.gui.window.window", ()),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                encoding="utf-8",
                start_new_session=os.name != "nt",  # Ctrl-C in the terminal is the server's
                creationflags=_NO_CONSOLE,
            )

    def present(self, link: str) -> Outcome:
        """See Display."""
        if self._process is None:
            self.begin()
        process = self._process
        assert process is not None and process.stdin is not None
        began = time.monotonic()
        self._say(json.dumps({**self.told, "link": link}))
        self._note(process)
        try:
            code, silent = process.wait(_SILENT), False
        except subprocess.TimeoutExpired:
            if silent := not self.opened():
                process.kill()
            code = process.wait()
        self._process = None
        with suppress(OSError):
            process.stdin.close()
        self._file.unlink(missing_ok=True)
        if silent:
            return Outcome(
                False, f"The window's process was ended: it showed nothing for {_SILENT:.0f} s ({self._log})."
            )
        if code == 0:
            return Outcome(True)
        said = self._last_words()
        if code == _NO_WINDOW:
            return Outcome(False, f"There is no window of its own here: {said or 'the reason is not known'}.")
        self._broken += 1
        again = time.monotonic() - began > _YOUNG and self._broken <= _MOST_AGAIN
        return Outcome(False, f"The window's process ended unexpectedly (exit code {code}; {self._log}).", again)

    def show(self, link: str) -> bool:
        """See Display."""
        return self._say("show")

    def close(self) -> None:
        """See Display."""
        process = self._process
        if process is not None and process.poll() is None:
            self._say("quit")
            _end(process)

    def _end_orphan(self) -> None:
        """A window whose server was killed shows only that; the one to come takes its place."""
        try:
            known = Process.read(read_json_object(self._file, 65536))
        except (OSError, ValueError):
            return
        if known.alive():
            with suppress(OSError):
                os.kill(known.pid, signal.SIGTERM)

    def _note(self, process: subprocess.Popen[str]) -> None:
        with suppress(DiskFailed, OSError):
            write_text(self._file, json.dumps(Process.of(process.pid).as_json()))

    def _say(self, line: str) -> bool:
        process = self._process
        if process is None or process.poll() is not None or process.stdin is None:
            return False
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def _last_words(self) -> str:
        try:
            lines = [line for line in self._log.read_text("utf-8", "replace").splitlines() if line.strip()]
        except OSError:
            return ""
        return lines[-1].strip().rstrip(".") if lines else ""


class Chromium:
    """See chromium.py. `size` is that of a first window; it remembers its own."""

    def __init__(self, home: Home, size: tuple[int, int] = (1280, 860)) -> None:
        self._browser = chromium.find()
        self._profile = home.window / "chromium"
        self._log = home.window / "window.log"
        self._size = size
        self._process: subprocess.Popen[bytes] | None = None

    def present(self, link: str) -> Outcome:
        """See Display."""
        if self._browser is None:
            return Outcome(False, "Neither Chromium nor Chrome nor Edge was found.")
        chromium.end_orphan(chromium.profile_for(self._browser, self._profile))
        began = time.monotonic()
        try:
            self._process = self._start(self._browser, link)
        except OSError as error:
            return Outcome(False, f"{self._browser} cannot be started ({error.strerror}).")
        code = self._process.wait()
        opening.remove_launch_pages(self._pages())
        self._process = None
        soon = time.monotonic() - began < _YOUNG
        if code == 0 and soon and sys.platform == "win32":
            # It may be that one of an earlier start is still open and has shown it; elsewhere that one was ended before.
            return Outcome(False, shown=True)
        if code == 0 or not soon:
            return Outcome(True)
        return Outcome(False, f"{self._browser.name} ended at once (exit code {code}; {self._log}).")

    def show(self, link: str) -> bool:
        """See Display. A second window of the same process."""
        if self._browser is None or self._process is None or self._process.poll() is not None:
            return False
        with suppress(OSError):
            self._start(self._browser, link)
            return True
        return False

    def close(self) -> None:
        """See Display."""
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            _end(process)

    def _pages(self) -> Path:
        """Where the pages lie that hold the links: where Chromium may read."""
        profile = chromium.profile_for(self._browser, self._profile) if self._browser is not None else self._profile
        return profile.parent if profile == self._profile else profile

    def _start(self, browser: Path, link: str) -> subprocess.Popen[bytes]:
        profile = chromium.profile_for(browser, self._profile)
        page = opening.write_launch_page(link, self._pages())
        with self._log.open("ab") as log:
            return subprocess.Popen(
                chromium.command(browser, page.as_uri(), profile, self._size),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=os.name != "nt",
            )


def _end(process: subprocess.Popen[Any]) -> None:
    """Wait for it, then ask it, then make it."""
    for harder in (process.terminate, process.kill, None):
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GENTLE)
            return
        if harder is not None:
            harder()
