"""One app per home: which process it is, and how a second start sends it requests.

home/window/instance.lock   locked while the app runs; the system releases the lock however the process ends
home/window/instance.json   process, port and control key; readable by its user only

A second start sends POST /control to the first (gui/http/guard.py). Only programs of the user can read the key that this requires.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from finetune_local.gui.http.guard import CONTROL, CONTROL_HEADER
from finetune_local.system.errors import RunError
from finetune_local.system.files import written_aside
from finetune_local.system.locks import acquire, held
from finetune_local.system.messages import Message, msg
from finetune_local.system.paths import Home
from finetune_local.system.process import Process
from finetune_local.system.untrusted.text import read_json_object

PATIENCE = 15.0
"""Seconds to wait for another app, which may still be starting."""

_ANSWER_SECONDS = 5.0
_OWNER_ONLY = 0o600


@dataclass(frozen=True)
class Running:
    """The running app, as instance.json describes it."""

    process: Process
    port: int
    key: str

    def request(self, do: str) -> str:
        """Its answer to a control request. Raises OSError if there is no answer, or one that the app does not give."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("POST", f"{CONTROL}?do={do}", headers={CONTROL_HEADER: self.key})
            answer = connection.getresponse()
            text = answer.read(65536).decode("utf-8", "replace")
        except http.client.HTTPException as error:
            raise OSError(f"no answer that can be read: {error!r}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise OSError(f"it answered {answer.status}")
        return text


class Instance:
    """The claim of this process to be the app of a home."""

    def __init__(self, home: Home) -> None:
        self._home = home.root
        self._file = home.window / "instance.json"
        self._lock = home.window / "instance.lock"
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Become the app of this home. Returns False if another process is."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, _OWNER_ONLY)
        mine = acquire(descriptor)
        if mine is None:  # on a drive without locks, the file decides
            mine = (other := self._read()) is None or not _answers(other)
        if not mine:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        self._file.unlink(missing_ok=True)  # left by an app that was killed
        return True

    def publish(self, port: int, key: str) -> None:
        """Write instance.json. Raises DiskFull."""
        known = {**Process.here().as_json(), "port": port, "key": key}
        with written_aside(self._file, msg("Free some space on it, then start the app again.")) as aside:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(known, file)

    def release(self) -> None:
        """Give up the claim."""
        if self._descriptor is not None:
            self._file.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def request(self, do: str, patience: float = PATIENCE) -> str:
        """The running app's answer to a control request. Waits for an app that is starting. Raises RunError if there is no answer."""
        until = time.monotonic() + patience
        while True:
            other = self._read()
            if other is not None and self._taken(other):
                with contextlib.suppress(OSError):
                    return other.request(do)
            if time.monotonic() > until:
                raise RunError(_no_answer(self._home, other))
            time.sleep(0.1)

    def quit(self, patience: float = PATIENCE) -> bool:
        """End the running app. Returns False if none runs. Raises RunError if it does not end."""
        if not self._taken(self._read()):
            return False
        self.request("quit", patience)
        if not _within(patience, lambda: not self._taken(self._read())):
            raise RunError(_no_answer(self._home, self._read()))
        return True

    def _taken(self, other: Running | None) -> bool:
        """Whether an app runs for this home. Testing the lock does not interfere with an app that is starting."""
        taken = held(self._lock)
        return taken if taken is not None else other is not None and other.process.alive()

    def _read(self) -> Running | None:
        try:
            known = read_json_object(self._file, 65536)
            port, key = known.get("port"), known.get("key")
            if isinstance(port, int) and 0 < port < 65536 and isinstance(key, str):
                return Running(Process.read(known), port, key)
        except (OSError, ValueError):
            pass  # damaged or missing: no app can be reached by it
        return None


def _answers(other: Running) -> bool:
    if not other.process.alive() or other.process.pid == os.getpid():
        return False
    try:
        other.request("")
    except OSError:
        return False
    return True


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until a condition is true. Returns False if it is not true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _no_answer(home: Path, other: Running | None) -> Message:
    which = msg(" (process {number})", number=other.process.pid) if other is not None else ""
    return msg(
        "the app is already running for {home}{which}, but does not respond. Wait a moment and try again; if "
        "that does not help, end that process. Training is not affected.",
        home=home,
        which=which,
    )
