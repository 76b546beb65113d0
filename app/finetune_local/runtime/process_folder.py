"""Process folders: a folder with a worker process, its events (events.jsonl), its state, and how it is started and stopped.

Training runs (training/run_folder/runs.py) and jobs (runtime/job.py) are process folders. The worker's files (lock, process id, log,
stop) are those of runtime/worker_files.py.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from finetune_local.runtime import start
from finetune_local.runtime.events import Event, EventFormat
from finetune_local.runtime.kinds import JobKind
from finetune_local.runtime.status import ProcessState, Status
from finetune_local.runtime.worker_files import WorkerFiles, log_tail
from finetune_local.system.files import disk_full, sync
from finetune_local.system.messages import Message, carried, carrying, msg
from finetune_local.system.untrusted.text import ForeignTextError, open_file, parse_json_object

_FAR_BACK = 2**25
"""The most bytes searched for the last event: on a damaged disk all lines may have become one."""


@dataclass(frozen=True)
class EventLog:
    """The events of one process folder."""

    folder: Path

    format: ClassVar[EventFormat]
    on_full_disk: ClassVar[Message] = msg("Free some space, then start it again.")
    """Advice in the error for a full disk."""

    @property
    def events_file(self) -> Path:
        """One JSON object per line."""
        return self.folder / "events.jsonl"

    def append(self, event: Event) -> None:
        """Append one event. Only the file's last line can ever be incomplete. Raises DiskFailed."""
        with disk_full(self.events_file, self.on_full_disk), self.events_file.open("ab+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")  # ends a half-written line, for which there was no space
            file.write((json.dumps(carrying(event.as_json()), ensure_ascii=False) + "\n").encode("utf-8"))
        if event.durable:
            self.sync()

    def sync(self) -> None:
        """Flush all events so far to the disk. Raises DiskFailed."""
        with disk_full(self.events_file, self.on_full_disk):
            if self.events_file.exists():
                sync(self.events_file)
                sync(self.folder)

    def lines(self) -> Iterator[Mapping[str, Any]]:
        """All lines so far, parsed. A half-written last line and damaged lines are skipped."""
        try:
            file = open_file(self.events_file)
        except (FileNotFoundError, ForeignTextError):
            return
        with file:
            for line in file:
                if line.endswith(b"\n") and (values := _parsed(line)) is not None:
                    yield values

    def history(self) -> Iterator[Event]:
        """All events so far; lines that are not events of this format are skipped."""
        return (event for line in self.lines() if (event := self.format.read(line)) is not None)

    def newest(self) -> Iterator[Mapping[str, Any]]:
        """The lines, parsed, from the last one backwards. Lazy, so that listing a thousand runs is quick."""
        try:
            file = open_file(self.events_file)
        except (OSError, ForeignTextError):
            return
        with file:
            size = file.seek(0, os.SEEK_END)
            reach, found = 4096, False
            while not found:
                file.seek(max(0, size - reach))
                lines = file.read().split(b"\n")[:-1]
                for line in reversed(lines if reach >= size else lines[1:]):
                    if (values := _parsed(line)) is not None:
                        found = True
                        yield values
                if reach >= min(size, _FAR_BACK):
                    return
                reach *= 8

    def last_line(self) -> Mapping[str, Any] | None:
        """The last line, parsed; None if there is none."""
        return next(self.newest(), None)

    def last_event(self) -> Event | None:
        """The last event; None if there are no lines or the last one is not an event of this format."""
        line = self.last_line()
        return self.format.read(line) if line else None

    def events_end(self) -> int:
        """The position in bytes after the last complete line, from which a reader can follow."""
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
        """A reader of the events after `position` (bytes)."""
        return Tail(self.events_file, self.format, position)


class Tail:
    """Reads events as the file grows."""

    def __init__(self, path: Path, format: EventFormat, position: int = 0) -> None:  # noqa: A002 - EventLog's word
        self.path, self.position, self._format, self._rest = path, position, format, b""

    def read(self) -> list[Event]:
        """The events since the last call; an incomplete last line waits for the next call."""
        try:
            with open_file(self.path) as file:
                file.seek(self.position)
                chunk = file.read()
        except (OSError, ForeignTextError):  # does not exist yet, or cannot be read at the moment
            return []
        self.position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        parsed = (values for line in lines if (values := _parsed(line)) is not None)
        return [event for values in parsed if (event := self._format.read(values)) is not None]


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    """A line as a JSON object; None if it is not one."""
    try:
        return carried(parse_json_object(line))
    except ForeignTextError:
        return None


@dataclass(frozen=True)
class ProcessFolder(EventLog, WorkerFiles):
    """A folder with a worker process."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def kind(self) -> JobKind:
        """The kind of work. Raises SpecError if it cannot be read."""
        raise NotImplementedError

    def process_state(self) -> ProcessState:
        """The state, from the last event and the lock. Quick enough for a list of a thousand folders."""
        return self.state_after(self.last_line(), alive=self.alive(), claimed=self.worker_file.exists())

    def status(self) -> Status:
        """The status alone."""
        return self.process_state().status

    def state_after(self, last: Mapping[str, Any] | None, *, alive: bool, claimed: bool) -> ProcessState:
        """The state, given the last line of events.jsonl, whether the worker is alive, and whether a worker.json exists."""
        event = self.format.class_of(last)
        end = None if event is None else event.end
        if end is not None and (end is Status.FINISHED or not alive or self.kind.logs_restart):
            return ProcessState(Status.PAUSED if end is Status.STOPPED and self.kind.resumable else end)
        if alive:
            return ProcessState(Status.RUNNING)
        if last is None and not claimed:
            return ProcessState(Status.QUEUED)
        return ProcessState(Status.FAILED, killed=True)

    def start(self, *arguments: str) -> None:
        """Start the worker; returns when it has claimed the folder. Raises RunError if the folder no longer exists."""
        start.start([self], self.kind.worker, [str(self.folder), *arguments])

    def ask_to_stop(self, content: str = "", patience: float = 0.0) -> bool:
        """Request the worker to save and exit; wait up to `patience` seconds. Returns whether it has ended.

        `content` is written to the stop file, for the worker to read.
        """
        self.stop_file.write_text(content, "ascii")
        until = time.monotonic() + patience
        while self.alive() and time.monotonic() < until:
            time.sleep(0.05)
        return not self.alive()

    def kill(self) -> None:
        """Kill the worker. What it has saved is not lost."""
        import psutil

        if (pid := self.worker_pid()) is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()

    def wait_for_exit(self, seconds: float = 30.0) -> None:
        """Wait for a worker that has written its last event to exit; reap it if it is a child of this process."""
        start.reap(self.folder)
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.02)

    def log_tail(self, most: int = 3) -> list[str]:
        """The last non-empty lines of the log."""
        return log_tail(self.log, most)
