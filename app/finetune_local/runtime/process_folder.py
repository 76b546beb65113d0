"""A folder in which a worker process works: its events, its state, and how it is stopped.

Training runs (training/run_folder/runs.py) and jobs (runtime/job.py) are process folders. The files are those of
runtime/event_log.py (events.jsonl) and runtime/worker_files.py (lock, process id, log, stop).
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
from finetune_local.system.messages import carried, carrying, msg
from finetune_local.system.untrusted.text import ForeignTextError, open_file, parse_json_object

_FAR_BACK = 2**25
"""Bytes at the end of the file that are searched for the last event: a damaged disk may have joined all lines into one."""


@dataclass(frozen=True)
class EventLog:
    """The events of one process folder."""

    folder: Path

    format: ClassVar[EventFormat]
    on_full_disk: ClassVar[str] = msg("Make room, then start it again.")
    """What the user is told to do where there is no room for a line."""

    @property
    def events_file(self) -> Path:
        """One JSON object per line."""
        return self.folder / "events.jsonl"

    def append(self, event: Event) -> None:
        """Append one event. A line is either whole or the file's last. Raises DiskFailed."""
        with disk_full(self.events_file, self.on_full_disk), self.events_file.open("ab+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                file.write(b"\n")  # half a line, for which there was no room: it gets a line to itself
            file.write((json.dumps(carrying(event.as_json()), ensure_ascii=False) + "\n").encode("utf-8"))
        if event.durable:
            self.sync()

    def sync(self) -> None:
        """Return once all events so far are on the disk. Raises DiskFailed."""
        with disk_full(self.events_file, self.on_full_disk):
            if self.events_file.exists():
                sync(self.events_file)
                sync(self.folder)

    def lines(self) -> Iterator[Mapping[str, Any]]:
        """All lines so far as plain objects, without a half-written last line and lines that a damaged disk has spoilt."""
        try:
            file = open_file(self.events_file)
        except (FileNotFoundError, ForeignTextError):
            return
        with file:
            for line in file:
                if line.endswith(b"\n") and (values := _parsed(line)) is not None:
                    yield values

    def history(self) -> Iterator[Event]:
        """All events so far; lines that are no event of this format are skipped."""
        return (event for line in self.lines() if (event := self.format.read(line)) is not None)

    def newest(self) -> Iterator[Mapping[str, Any]]:
        """The lines as plain objects from the last one backwards, lazily, so that a list of a thousand runs is quick."""
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
        """The last line as a plain object."""
        return next(self.newest(), None)

    def last_event(self) -> Event | None:
        """The last event; None where there is none, or where the last line is none of this format."""
        line = self.last_line()
        return self.format.read(line) if line else None

    def events_end(self) -> int:
        """Size of the file in bytes without a half-written last line: where a reader can start to follow."""
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
        """A reader of what is appended after `position` (bytes)."""
        return Tail(self.events_file, self.format, position)


class Tail:
    """Reads events as the file grows."""

    def __init__(self, path: Path, format: EventFormat, position: int = 0) -> None:  # noqa: A002 - EventLog's word
        self.path, self.position, self._format, self._rest = path, position, format, b""

    def read(self) -> list[Event]:
        """The events since the last call. A line is read once it is whole."""
        try:
            with open_file(self.path) as file:
                file.seek(self.position)
                chunk = file.read()
        except (OSError, ForeignTextError):  # not there yet, or unreadable for the moment
            return []
        self.position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        parsed = (values for line in lines if (values := _parsed(line)) is not None)
        return [event for values in parsed if (event := self._format.read(values)) is not None]


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    """A line as a JSON object; None where it is none."""
    try:
        return carried(parse_json_object(line))
    except ForeignTextError:
        return None


@dataclass(frozen=True)
class ProcessFolder(EventLog, WorkerFiles):
    """One process folder."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def kind(self) -> JobKind:
        """What kind of work it is. Raises SpecError where that cannot be read."""
        raise NotImplementedError

    def process_state(self) -> ProcessState:
        """What the work is doing, from its last event and its lock: quick enough for a list of a thousand."""
        return self.state_after(self.last_line(), alive=self.alive(), claimed=self.worker_file.exists())

    def status(self) -> Status:
        """The status alone."""
        return self.process_state().status

    def state_after(self, last: Mapping[str, Any] | None, *, alive: bool, claimed: bool) -> ProcessState:
        """The state by the last line of events.jsonl, whether the worker is alive, and whether one has left its worker.json."""
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
        """Start the worker, and return once it has claimed the folder. Raises RunError where the folder is gone."""
        start.start([self], self.kind.worker, [str(self.folder), *arguments])

    def ask_to_stop(self, content: str = "", patience: float = 0.0) -> bool:
        """Ask the worker to save and end, and wait up to `patience` seconds for that. True once it has ended.

        `content` of the stop file is for the worker to read.
        """
        self.stop_file.write_text(content, "ascii")
        until = time.monotonic() + patience
        while self.alive() and time.monotonic() < until:
            time.sleep(0.05)
        return not self.alive()

    def kill(self) -> None:
        """End the worker at once; what it has saved stays."""
        import psutil

        if (pid := self.worker_pid()) is not None:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()

    def wait_for_exit(self, seconds: float = 30.0) -> None:
        """Wait for a worker that has written its last event to exit, and reap it where it is a child of this process."""
        start.reap(self.folder)
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.02)

    def log_tail(self, most: int = 3) -> list[str]:
        """The last lines of the log that are not empty."""
        return log_tail(self.log, most)
