"""The one vocabulary for work that a process does in a folder: training runs, downloads, evaluations, exports, extractions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """What a run or a job is doing.

    `--json` output and the events on disk are older than this enum and keep their words for three of its members: "new" for
    QUEUED, "stopped" for PAUSED, and "interrupted" for FAILED where the worker was killed. See ProcessState.as_json().
    """

    QUEUED = "queued"
    """No worker has started yet."""
    RUNNING = "running"
    """Its worker is alive."""
    PAUSED = "paused"
    """Stopped by the user; it can continue from there."""
    FINISHED = "finished"
    """It reached its end."""
    FAILED = "failed"
    """An error ended it, or its worker was killed."""
    STOPPED = "stopped"
    """Stopped by the user; started again, it begins from the start."""


@dataclass(frozen=True)
class ProcessState:
    """A status, and whether FAILED means that the worker was killed: it ended without writing a last event."""

    status: Status
    killed: bool = False

    def as_json(self) -> str:
        """The word that `--json` prints, the same since the first version."""
        if self.killed:
            return "interrupted"
        return {Status.QUEUED: "new", Status.PAUSED: "stopped"}.get(self.status, self.status.value)
