"""Detects runs and jobs that have ended. Each window shows each of them once (frame.py), and so does the desktop (gui/window/notify.py).

The names of running work are stored on disk, so that work which ended while the app was closed is shown at the next start. Work that
the user stopped is not shown.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from finetune_local.gui.i18n.strings import Strings
from finetune_local.runtime.events import Failed
from finetune_local.runtime.job import Job
from finetune_local.runtime.kinds import JobKind
from finetune_local.runtime.process_folder import ProcessFolder
from finetune_local.runtime.status import ProcessState, Status
from finetune_local.system.errors import DiskFailed, SpecError
from finetune_local.system.files import write_text
from finetune_local.system.paths import Home
from finetune_local.system.untrusted.text import read_json
from finetune_local.training.run_folder.runs import Run
from finetune_local.workspace import work

_MIN_SECONDS = 0.8
_KEPT = 50


@dataclass(frozen=True)
class Ended:
    """A run or job that ended. Numbers increase. `message` says why it failed, in English; see strings.sentence."""

    number: int
    folder: ProcessFolder
    kind: JobKind
    state: ProcessState
    message: str = ""

    @property
    def name(self) -> str:
        """The run's or job's name."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether it finished without an error."""
        return self.state.status is Status.FINISHED

    def title(self, t: Strings) -> str:
        """A title that says what ended and how."""
        words = [f"{key}_{how}" for key in (self.kind.key, "job") for how in self._how()]
        return t(f"ended.{next(word for word in words if t.get(f'ended.{word}'))}", name=self.name)

    def _how(self) -> list[str]:
        return ["interrupted", Status.FAILED] if self.state.killed else [self.state.status]

    def text(self, t: Strings) -> str:
        """The reason of a failure, or what the user can do; may be empty."""
        if self.message:
            return self.message
        return (t.get(f"ended.{self.kind.key}_resumable") or "") if self.state.killed else ""


class Endings:
    """Work that ended since the server started, or while the app was closed. Safe to use from any thread."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._file = home.window / "at_work.json"
        self._lock = threading.Lock()
        self._updated = float("-inf")
        self._number = 0
        self._ended: list[Ended] = []
        self._running = self._read()
        self.update()

    def update(self) -> None:
        """Update the list. Every window calls this each second; the disk is read at most every 0.8 s."""
        with self._lock:
            if time.monotonic() - self._updated < _MIN_SECONDS:
                return
            self._updated = time.monotonic()
            now = {(found.folder.parent.name, found.name) for found in work.running(self._home)}
            before, self._running = self._running, now
            for place, name in sorted(before - now):
                self._end(place, name)
            del self._ended[:-_KEPT]
            if now != before:
                with suppress(DiskFailed, OSError):  # at worst, a notice is missing after the next start
                    write_text(self._file, json.dumps(sorted(now), ensure_ascii=False))

    def since(self, number: int) -> list[Ended]:
        """Those with a higher number, the oldest first."""
        with self._lock:
            return [ended for ended in self._ended if ended.number > number]

    def _end(self, place: str, name: str) -> None:
        folder = Run(self._home.runs / name) if place == self._home.runs.name else Job(self._home.jobs / name)
        ended = _ended(self._number + 1, folder)
        if ended is not None:
            self._number = ended.number
            self._ended.append(ended)

    def _read(self) -> set[tuple[str, str]]:
        """The work that was running: pairs of a folder of the home ("runs" or "jobs"; "run" and "job" in earlier versions) and a name."""
        try:
            found = {(str(place), str(name)) for place, name in read_json(self._file)}
        except (OSError, ValueError, TypeError):
            return set()
        return {(place if place.endswith("s") else f"{place}s", name) for place, name in found}


def _ended(number: int, folder: ProcessFolder) -> Ended | None:
    """How a run or a job ended; None if the user stopped or removed it, or if it is damaged, which its page reports."""
    try:
        if isinstance(folder, Run):
            if not (folder.folder / "run.json").exists():  # removed
                return None
            state, last = folder.process_state(), folder.last_event()
            message = last.message if isinstance(last, Failed) else ""
        else:
            assert isinstance(folder, Job)
            state = now = folder.state()
            message = now.error.message if now.error else ""
        kind = folder.kind
    except (SpecError, OSError, ValueError, KeyError, TypeError):
        return None
    if state.status not in (Status.FINISHED, Status.FAILED):
        return None
    return Ended(number, folder, kind, state, message)
