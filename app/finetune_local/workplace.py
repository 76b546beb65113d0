"""A folder in which a process of its own works: who that is, whether it lives, how it is asked to stop, what it said last.

events.jsonl   what happened, append-only         worker.json    which process works
stop           asks it to finish and end          worker.lock    held by it
worker.log     what it and its libraries printed

Nothing of it hangs on the process that looks: it can go away, be killed and come back. Training runs (train/runs.py) and
jobs (jobs/job.py) are such folders.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# On Windows a worker in the same console would end when its window is closed.
_OWN_CONSOLE = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Workers this process started, to be reaped when they end; whether one lives is read from its folder."""


@dataclass(frozen=True)
class Workplace:
    """One such folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def events_file(self) -> Path:
        """What happened, one JSON object a line."""
        return self.folder / "events.jsonl"

    @property
    def log(self) -> Path:
        """What the worker and its libraries printed."""
        return self.folder / "worker.log"

    @property
    def stop_file(self) -> Path:
        """Its existence asks the worker to end where it can go on later."""
        return self.folder / "stop"

    @property
    def worker_file(self) -> Path:
        """Which process works; one that was killed leaves it behind."""
        return self.folder / "worker.json"

    def lines(self) -> Iterator[dict[str, Any]]:
        """All events so far; a half-written last line, and one that a damaged disk spoilt, are left out."""
        if self.events_file.exists():
            with self.events_file.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n") and (values := _parsed(line)) is not None:
                        yield values

    def last_line(self) -> dict[str, Any] | None:
        """The newest event, read from the end of the file, so that a list of a thousand is quick."""
        return next(self.newest(), None)

    def newest(self) -> Iterator[dict[str, Any]]:
        """The newest event, then those before it, as far as a few kilobytes at the end of the file reach; read when asked for."""
        try:
            file = self.events_file.open("rb")
        except OSError:
            return
        with file:
            size = file.seek(0, os.SEEK_END)
            reach, told = 4096, False
            while not told:
                file.seek(max(0, size - reach))
                lines = file.read().split(b"\n")[:-1]
                for line in reversed(lines if reach >= size else lines[1:]):
                    if (values := _parsed(line)) is not None:
                        told = True
                        yield values
                if reach >= size:
                    return
                reach *= 8

    def events_end(self) -> int:
        """Size of events.jsonl without a half-written last line: where a reader can begin to follow."""
        if not self.events_file.exists():
            return 0
        with self.events_file.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                if (at := file.read(end - start).rfind(b"\n")) >= 0:
                    return start + at + 1
                end = start
        return 0

    def tail(self, position: int = 0) -> Tail:
        """A reader of what is appended from `position` on."""
        return Tail(self.events_file, position)

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Hold the folder for this process; False where another one has it. The system frees it however the process ends."""
        with (self.folder / "worker.lock").open("ab") as file:
            yield locked(file.fileno())

    def worker(self) -> int | None:
        """Process id of the living worker, or None. Guarded against a reused id by the process's start time."""
        try:
            known: dict[str, Any] = json.loads(self.worker_file.read_text("utf-8"))
            return alive(int(known["pid"]), float(known["started"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def last_words(self, most: int = 3) -> list[str]:
        """The last lines of the log that say something."""
        try:
            text = self.log.read_text("utf-8", "replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()][-most:]

    def kill(self) -> None:
        """End the worker at once; what it saved stays."""
        import psutil

        if (pid := self.worker()) is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()

    def wait_until_gone(self, seconds: float = 30.0) -> None:
        """Wait for the end of a worker that has said its last word, and reap it where it is a child of this process."""
        if (child := _children.pop(self.folder, None)) is not None:
            child.wait()
        until = time.monotonic() + seconds
        while self.worker() is not None and time.monotonic() < until:
            time.sleep(0.02)

    def worker_text(self) -> bytes:
        """The worker file as it stands; empty where there is none."""
        try:
            return self.worker_file.read_bytes()
        except OSError:
            return b""


class Tail:
    """The end of an events.jsonl, read as it grows."""

    def __init__(self, path: Path, position: int = 0) -> None:
        self.path, self.position, self._rest = path, position, b""

    def read(self) -> list[dict[str, Any]]:
        """What is new. A line is given once it is whole."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.position)
                chunk = file.read()
        except FileNotFoundError:
            return []
        self.position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [values for line in lines if (values := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of events; None for what is no JSON object."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def start(places: Sequence[Workplace], module: str, arguments: Sequence[str]) -> None:
    """Start one worker, `python -m module ARGUMENTS`, for one or several folders; returns once it has taken them over.

    It lives in a session of its own, so that neither Ctrl-C nor a closed window ends it.
    """
    before = [place.worker_text() for place in places]
    for place in places:  # one that has said its last word may still be on its way out
        if (old := _children.pop(place.folder, None)) is not None:
            with suppress(subprocess.TimeoutExpired):
                old.wait(30)
    with places[0].log.open("ab") as log:
        process = subprocess.Popen(
            command_of(module, arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
            start_new_session=os.name != "nt",
            creationflags=_OWN_CONSOLE,
        )
    _children.update(dict.fromkeys((place.folder for place in places), process))
    try:
        # What a killed worker left says nothing about the new one: wait for another text, or for its end.
        while process.poll() is None and any(
            place.worker_text() in (b"", old) for place, old in zip(places, before, strict=True)
        ):
            time.sleep(0.02)
    except KeyboardInterrupt:
        process.kill()  # it would go on unseen
        raise


def reap() -> None:
    """Let go of children that have ended; for a process that starts workers and follows none of them."""
    for folder, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(folder, None)


def command_of(module: str, arguments: Sequence[str]) -> list[str]:
    """The command of a worker. -P: a file of the user's folder that is called like a library must not be imported."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """For a worker: libraries must not ask the network."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUTF8": "1",
        # The screen's watchdog ends long GPU commands on a Mac otherwise.
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
    }


def started_at(pid: int) -> float | None:
    """When a process began, in seconds since the epoch; None for one that has ended."""
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def alive(pid: int, started: float) -> int | None:
    """The process id where that very process lives, told from a later one of the same id by its start time."""
    import psutil

    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return pid if same else None


def locked(descriptor: int) -> bool:
    """Lock an open file without waiting; False where another process holds it. Ends with the file or the process."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # some network drives know no locks
    return True
