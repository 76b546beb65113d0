"""The windows that can show the page: the system's WebView, or Chromium without its toolbars. Each is a separate process, so that its
crash does not end the server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from finetune_local.gui.window import chromium, opening
from finetune_local.gui.window.window import WindowOptions
from finetune_local.runtime.start import command_of
from finetune_local.system.errors import DiskFailed
from finetune_local.system.files import write_text
from finetune_local.system.paths import Home
from finetune_local.system.process import Process
from finetune_local.system.untrusted.text import read_json_object

_NO_CONSOLE = getattr(subprocess, "CREATE_NO_WINDOW", 0)
_NO_WINDOW = 3
_EARLY_SECONDS = 10.0
"""A window that crashes sooner is not tried again."""

_MAX_RETRIES = 3
_HANG_SECONDS = 45.0
"""A window that has not requested its page by then hangs: its libraries wait for the desktop."""

_CLOSE_SECONDS = 4.0
"""Time for a window to close by itself, and again after SIGTERM."""


@dataclass(frozen=True)
class Outcome:
    """Why present() returned: the user closed the window; or there is no window, for `reason`, where `again` says whether to retry; or
    another process shows it, whose end cannot be observed (`shown`)."""

    closed: bool
    reason: str = ""
    again: bool = False
    shown: bool = False


class Display(Protocol):
    """A window that shows the page."""

    def present(self, link: str) -> Outcome:
        """Open the window and wait until it has closed."""
        ...

    def show(self, link: str) -> bool:
        """Bring the window to the front, or open a second one by the link. Returns False if no window is open."""
        ...

    def close(self) -> None:
        """Close the window."""
        ...


class WebView:
    """The window of window.py, as a child process. Set `options` before present(); `opened` returns whether the window has used its link."""

    def __init__(self, home: Home) -> None:
        self._log = home.window / "window.log"
        self._file = home.window / "window.json"
        self._process: subprocess.Popen[str] | None = None
        self._crashes = 0
        self.options: WindowOptions | None = None
        self.opened: Callable[[], bool] = lambda: True

    def begin(self) -> None:
        """Start the process, which loads its libraries while the server loads its own. present() then sends it the options."""
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
        assert process is not None and process.stdin is not None and self.options is not None
        began = time.monotonic()
        self._send(replace(self.options, link=link).as_json())
        self._record(process)
        try:
            code, hung = process.wait(_HANG_SECONDS), False
        except subprocess.TimeoutExpired:
            if hung := not self.opened():
                process.kill()
            code = process.wait()
        self._process = None
        with suppress(OSError):
            process.stdin.close()
        self._file.unlink(missing_ok=True)
        if hung:
            return Outcome(
                False, f"The window's process was ended: it showed nothing for {_HANG_SECONDS:.0f} s ({self._log})."
            )
        if code == 0:
            return Outcome(True)
        words = self._last_line()
        if code == _NO_WINDOW:
            return Outcome(False, f"No separate window can be opened here: {words or 'the reason is not known'}.")
        self._crashes += 1
        again = time.monotonic() - began > _EARLY_SECONDS and self._crashes <= _MAX_RETRIES
        return Outcome(False, f"The window's process ended unexpectedly (exit code {code}; {self._log}).", again)

    def show(self, link: str) -> bool:
        """See Display."""
        return self._send("show")

    def close(self) -> None:
        """See Display."""
        process = self._process
        if process is not None and process.poll() is None:
            self._send("quit")
            _end(process)

    def _end_orphan(self) -> None:
        """End the window of a server that was killed, which shows only that the app ended."""
        try:
            known = Process.read(read_json_object(self._file, 65536))
        except (OSError, ValueError):
            return
        if known.alive():
            with suppress(OSError):
                os.kill(known.pid, signal.SIGTERM)

    def _record(self, process: subprocess.Popen[str]) -> None:
        with suppress(DiskFailed, OSError):
            write_text(self._file, json.dumps(Process.of(process.pid).as_json()))

    def _send(self, line: str) -> bool:
        process = self._process
        if process is None or process.poll() is not None or process.stdin is None:
            return False
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def _last_line(self) -> str:
        try:
            lines = [line for line in self._log.read_text("utf-8", "replace").splitlines() if line.strip()]
        except OSError:
            return ""
        return lines[-1].strip().rstrip(".") if lines else ""


class Chromium:
    """A window of Chromium; see chromium.py. `size` applies to the first window; later ones keep the user's size."""

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
        early = time.monotonic() - began < _EARLY_SECONDS
        if code == 0 and early and sys.platform == "win32":
            # A browser of an earlier start may have taken over. On other systems end_orphan() has ended it.
            return Outcome(False, shown=True)
        if code == 0 or not early:
            return Outcome(True)
        return Outcome(False, f"{self._browser.name} ended at once (exit code {code}; {self._log}).")

    def show(self, link: str) -> bool:
        """See Display. Opens a second window of the same process."""
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
        """The folder for pages with launch links, which Chromium must be able to read."""
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
    """Wait for a process to end; after a while terminate it, then kill it."""
    for stop in (process.terminate, process.kill, None):
        with suppress(subprocess.TimeoutExpired):
            process.wait(_CLOSE_SECONDS)
            return
        if stop is not None:
            stop()
