"""The status vocabulary of all long work: training runs, downloads, evaluations, exports, extractions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The status of a run or a job.

    `--json` output is older than this enum and has other words for three statuses: "new" for QUEUED, "stopped" for PAUSED, and
    "interrupted" for FAILED if the worker was killed. See ProcessState.as_json().
    """

    QUEUED = "queued"
    """No worker has started yet."""
    RUNNING = "running"
    """The worker is alive."""
    PAUSED = "paused"
    """Stopped by the user; can be resumed."""
    FINISHED = "finished"
    """The work is complete."""
    FAILED = "failed"
    """An error ended it, or its worker was killed."""
    STOPPED = "stopped"
    """Stopped by the user; a restart begins from the start."""


@dataclass(frozen=True)
class ProcessState:
    """A status. `killed`: it is FAILED because the worker ended without writing a last event."""

    status: Status
    killed: bool = False

    def as_json(self) -> str:
        """The word that `--json` has printed since the first version."""
        if self.killed:
            return "interrupted"
        return {Status.QUEUED: "new", Status.PAUSED: "stopped"}.get(self.status, self.status.value)
