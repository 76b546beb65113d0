"""One running app for a home: which process it is, how a second start speaks to it, and how a dead one is replaced.

home/window/instance.lock   held while the app runs; the system frees it however the process ends
home/window/instance.json   which process, port and control key; only its user may read it

A second start asks the first by POST /control with that key (gui/http/guard.py); nobody else knows it.
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
"""Seconds that another app may take to answer: it may only just be starting."""

_ANSWER_SECONDS = 5.0
_OWNER_ONLY = 0o600


@dataclass(frozen=True)
class Running:
    """The app that runs: what instance.json holds."""

    process: Process
    port: int
    key: str

    def ask(self, do: str) -> str:
        """Its answer to a control request. Raises OSError where it does not answer as the app does."""
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
    """This process's claim to be the app of a home."""

    def __init__(self, home: Home) -> None:
        self._home = home.root
        self._file = home.window / "instance.json"
        self._lock = home.window / "instance.lock"
        self._held: int | None = None

    def take(self) -> bool:
        """Become the app of this home; False where another process is."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, _OWNER_ONLY)
        mine = acquire(descriptor)
        if mine is None:  # where a drive knows no locks, the file tells
            mine = (other := self._read()) is None or not _answers(other)
        if not mine:
            os.close(descriptor)
            return False
        self._held = descriptor
        self._file.unlink(missing_ok=True)  # of one that was killed
        return True

    def tell(self, port: int, key: str) -> None:
        """Write down how this process is spoken to. Raises DiskFull."""
        known = {**Process.here().as_json(), "port": port, "key": key}
        with written_aside(self._file, "Make room on it, then start the app again.") as aside:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(known, file)

    def release(self) -> None:
        """Make room for the next one."""
        if self._held is not None:
            self._file.unlink(missing_ok=True)
            os.close(self._held)
            self._held = None

    def ask(self, do: str, patience: float = PATIENCE) -> str:
        """What the running app answers; waits where it is only starting. Raises RunError where it does not answer."""
        until = time.monotonic() + patience
        while True:
            other = self._read()
            if other is not None and self._taken(other):
                with contextlib.suppress(OSError):
                    return other.ask(do)
            if time.monotonic() > until:
                raise RunError(_no_answer(self._home, other))
            time.sleep(0.1)

    def quit(self, patience: float = PATIENCE) -> bool:
        """End the running app; False where none runs. Raises RunError where it does not end."""
        if not self._taken(self._read()):
            return False
        self.ask("quit", patience)
        if not _comes(lambda: not self._taken(self._read()), patience):
            raise RunError(_no_answer(self._home, self._read()))
        return True

    def _taken(self, other: Running | None) -> bool:
        """Whether an app runs for this home; looking takes nothing from one that is starting."""
        taken = held(self._lock)
        return taken if taken is not None else other is not None and other.process.alive()

    def _read(self) -> Running | None:
        try:
            known = read_json_object(self._file, 65536)
            port, key = known.get("port"), known.get("key")
            if isinstance(port, int) and 0 < port < 65536 and isinstance(key, str):
                return Running(Process.read(known), port, key)
        except (OSError, ValueError):
            pass  # damaged, or not there: nobody can be asked by it
        return None


def _answers(other: Running) -> bool:
    if not other.process.alive() or other.process.pid == os.getpid():
        return False
    try:
        other.ask("")
    except OSError:
        return False
    return True


def _comes(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _no_answer(home: Path, other: Running | None) -> Message:
    which = msg(" (process {number})", number=other.process.pid) if other is not None else ""
    return msg(
        "the app runs already for {home}{which}, but it does not answer. Wait a moment and try again; if that does not "
        "help, end that process. Training is not touched by it.",
        home=home,
        which=which,
    )
