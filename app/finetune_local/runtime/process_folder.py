"""A folder in which a worker process works: its events, its state, and how it is stopped.

Training runs (training/run_folder/runs.py) and jobs (runtime/job.py) are process folders. The files are those of
runtime/event_log.py (events.jsonl) and runtime/worker_files.py (lock, process id, log, stop).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from finetune_local.runtime import start
from finetune_local.runtime.event_log import EventLog
from finetune_local.runtime.kinds import JobKind
from finetune_local.runtime.status import ProcessState, Status
from finetune_local.runtime.worker_files import WorkerFiles, log_tail


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
