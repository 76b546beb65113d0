"""A folder in which a process of its own works: who that is, whether it lives, how it is asked to stop, what it said last.

events.jsonl   what happened, append-only         worker.json    which process works
stop           asks it to finish and end          worker.lock    held by it: that, and nothing else, is what living means
worker.log     what it and its libraries printed    .reserve    room for the last line on a disk that becomes full

Nothing of it hangs on the process that looks: it can go away, be killed and come back. Training runs (training/run_folder/runs.py) and
jobs (runtime/job.py) are such folders. On a network drive that knows no locks, worker.json tells who lives (system/process.py);
two that begin there in the same instant are not kept apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from finetune_local.system import locks
from finetune_local.system.errors import RunError
from finetune_local.system.files import disk_full, sync, write_text
from finetune_local.system.messages import carried, carrying, msg, system_reason
from finetune_local.system.process import Process
from finetune_local.system.untrusted.text import ForeignTextError, open_file, parse_json_object, read_json_object

# On Windows a worker in the same console would end when its window is closed.
_OWN_CONSOLE = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Workers this process started, to be reaped when they end; whether one lives is read from its folder."""

_FAR_BACK = 2**25
"""Bytes at the end of a file of events that are looked through: a disk may have made one line of them all."""

_RESERVE_BYTES = 65536

_starting = threading.Lock()
"""Two threads of this process do not start workers at once; other processes are told apart by the folder's lock."""


@dataclass(frozen=True)
class ProcessFolder:
    """One such folder."""

    folder: Path

    on_full_disk: ClassVar[str] = msg("Make room, then start it again.")
    """What to do where there is no room for a line."""

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

    @property
    def reserve_file(self) -> Path:
        """It keeps room for the worker's last line on a disk that becomes full."""
        return self.folder / ".reserve"

    def lines(self) -> Iterator[dict[str, Any]]:
        """All events so far; a half-written last line, and one that a damaged disk spoilt, are left out."""
        try:
            file = open_file(self.events_file)
        except (FileNotFoundError, ForeignTextError):
            return
        with file:
            for line in file:
                if line.endswith(b"\n") and (values := _parsed(line)) is not None:
                    yield values

    def add_line(self, values: Mapping[str, Any], *, durably: bool) -> None:
        """Append one event; a line is written whole or is the file's last. `durably`: return once it, and all before it, is on the
        disk. Raises DiskFailed."""
        with disk_full(self.events_file, self.on_full_disk), self.events_file.open("ab+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")  # half a line, for which there was no room: it stays by itself
            file.write((json.dumps(carrying(values), ensure_ascii=False) + "\n").encode("utf-8"))
        if durably:
            self.sync()

    def sync(self) -> None:
        """Return once all events so far are on the disk. Raises DiskFailed."""
        with disk_full(self.events_file, self.on_full_disk):
            if self.events_file.exists():
                sync(self.events_file)
                sync(self.folder)

    def last_line(self) -> dict[str, Any] | None:
        """The newest event, read from the end of the file, so that a list of a thousand is quick."""
        return next(self.newest(), None)

    def newest(self) -> Iterator[dict[str, Any]]:
        """The newest event, then those before it, as far as a few kilobytes at the end of the file reach; read when asked for."""
        try:
            file = open_file(self.events_file)
        except (OSError, ForeignTextError):
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
                if reach >= min(size, _FAR_BACK):
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

    @property
    def lock_file(self) -> Path:
        """Held by the process that works here."""
        return self.folder / "worker.lock"

    @contextmanager
    def locked(self, *, moving: bool = False) -> Iterator[bool]:
        """Hold the folder for this process; False where another one has it, or where it is gone. The system frees it however the
        process ends.

        `moving`: the folder is about to be renamed, which Windows does not do while a file in it is open. There the lock is given
        back at once; a worker that begins all the same has files open here, and the system refuses to move the folder.
        """
        descriptor = self._acquired_lock()
        if descriptor is not None and moving and os.name == "nt":
            os.close(descriptor)
            yield True
            return
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _acquired_lock(self) -> int | None:
        while True:
            try:
                descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o600)
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise RunError(
                    msg(
                        "{file} cannot be opened ({error}). Mend its rights, or remove it.",
                        file=self.lock_file,
                        error=system_reason(error),
                    )
                ) from None
            mine = locks.acquire(descriptor)
            if mine is None:
                known = self._noted()
                mine = known is None or known.pid == os.getpid() or not known.alive()
            if mine and self._is(descriptor):
                return descriptor
            os.close(descriptor)
            if not mine:
                return None

    def _is(self, descriptor: int) -> bool:
        """Whether an open lock file is still this folder's: it may have been moved away between opening and locking."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.lock_file.stat())
        except OSError:
            return False

    def alive(self) -> bool:
        """Whether a worker has this folder: it holds the lock. No clock and no process id is asked."""
        held = locks.held(self.lock_file)
        if held is None:
            known = self._noted()
            return known is not None and known.alive()
        return held

    def worker_pid(self) -> int | None:
        """Process id of the living worker where it is known and of this machine, to be shown or ended; lives() tells whether
        there is one. What a killed worker left is not taken for the next one's, though that has not written its own yet."""
        if not self.alive() or (known := self._noted()) is None:
            return None
        return known.pid if known.alive() else None

    def write_worker_file(self) -> None:
        """Note that this process works here. Raises DiskFull."""
        write_text(self.worker_file, json.dumps(Process.here().as_json()) + "\n")

    def claim(self) -> None:
        """What a worker writes first: that it works here, and room for its last line. Raises DiskFailed."""
        with disk_full(self.folder, self.on_full_disk):
            self.write_worker_file()
            self.reserve_file.write_bytes(b"\0" * _RESERVE_BYTES)

    def free_reserve(self) -> None:
        """Give the room back, for the last line to be written into it."""
        with suppress(OSError):
            self.reserve_file.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove what is a worker's own, as far as that can be done; the last thing that one does."""
        for file in (self.worker_file, self.reserve_file, self.stop_file):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def _noted(self) -> Process | None:
        try:
            return Process.read(read_json_object(self.worker_file, 65536))
        except (OSError, ValueError):
            return None

    def log_tail(self, most: int = 3) -> list[str]:
        """The last lines of the log that say something."""
        try:
            text = self.log.read_text("utf-8", "replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()][-most:]

    def kill(self) -> None:
        """End the worker at once; what it saved stays."""
        import psutil

        if (pid := self.worker_pid()) is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()

    def wait_for_exit(self, seconds: float = 30.0) -> None:
        """Wait for the end of a worker that has said its last word, and reap it where it is a child of this process."""
        if (child := _children.pop(self.folder, None)) is not None:
            child.wait()
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
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
            with open_file(self.path) as file:
                file.seek(self.position)
                chunk = file.read()
        except (OSError, ForeignTextError):  # not there yet, or for the moment not to be read
            return []
        self.position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [values for line in lines if (values := _parsed(line)) is not None]


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of events; None for what is no JSON object."""
    try:
        return carried(parse_json_object(line))
    except ForeignTextError:
        return None


def start(places: Sequence[ProcessFolder], module: str, arguments: Sequence[str]) -> None:
    """Start one worker, `python -m module ARGUMENTS`, for one or several folders; returns once it has taken them over, or another
    one has. Raises RunError where a folder is gone.

    It lives in a session of its own, so that neither Ctrl-C nor a closed window ends it.
    """
    with _starting:
        for place in places:  # one that has said its last word may still be on its way out
            if not place.alive() and (old := _children.pop(place.folder, None)) is not None:
                with suppress(subprocess.TimeoutExpired):
                    old.wait(30)
        if not any(place.alive() for place in places):
            _start(places, module, arguments)


def _start(places: Sequence[ProcessFolder], module: str, arguments: Sequence[str]) -> None:
    before = [place.worker_text() for place in places]
    try:
        log = places[0].log.open("ab")
    except FileNotFoundError:
        raise _gone(places[0]) from None
    with log:
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
    if process.poll() is not None:
        for place in places:
            if not place.folder.exists():
                raise _gone(place)


def _gone(place: ProcessFolder) -> RunError:
    return RunError(msg("{folder} is not there any more: it was removed or renamed meanwhile.", folder=place.folder))


def log_line(text: str) -> None:
    """Write to a worker's stderr, which is worker.log, on a disk that may be full."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


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
