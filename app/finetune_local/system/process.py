"""Identify a process beyond its id, which the system reuses, by its start as the kernel recorded it, independent of clocks.

Whether something runs is decided by its lock (locks.py). This is for what a lock cannot answer: which process to end, and what runs
on a drive without locks. psutil's create_time() is not used: on Linux it depends on the wall clock.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OUR_WORDS = ("finetune_local", "finetune-local")


@dataclass(frozen=True)
class Process:
    """A process as stored in a file. `mark` is None in files of earlier versions, which have the start time only."""

    pid: int
    started: float
    mark: str | None = None

    @classmethod
    def of(cls, pid: int) -> Process:
        """The running process with this id. Raises ProcessLookupError."""
        import psutil

        try:
            return cls(pid, float(psutil.Process(pid).create_time()), _mark(pid))
        except psutil.Error:
            raise ProcessLookupError(f"no process {pid}") from None

    @classmethod
    def here(cls) -> Process:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Process:
        """From as_json() or an earlier version's file. Raises ValueError for anything else."""
        pid, started, mark = values.get("pid"), values.get("started"), values.get("mark")
        if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31:
            raise ValueError("pid is no process id")
        if not isinstance(started, (int, float)) or isinstance(started, bool):
            raise ValueError("started is no time")
        return cls(pid, float(started), mark if isinstance(mark, str) else None)

    def as_json(self) -> dict[str, object]:
        """For storage; earlier versions read `started`."""
        return {"pid": self.pid, "started": self.started, **({"mark": self.mark} if self.mark else {})}

    def alive(self) -> bool:
        """Whether exactly this process is still running."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            if self.mark is not None:
                return _mark(self.pid) == self.mark
            return any(word in part for part in process.cmdline() for word in _OUR_WORDS)
        except psutil.Error:
            return False


def started_at(pid: int) -> float | None:
    """When a process started, in seconds since the epoch by the current clock; None if it has ended."""
    try:
        return Process.of(pid).started
    except ProcessLookupError:
        return None


def _mark(pid: int) -> str | None:
    """A value that differs for a later process of the same id and does not depend on the clock. Raises psutil.Error."""
    import psutil

    if sys.platform == "linux":
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
            # The name, in brackets, may contain anything. The start time is field 22, in ticks since boot.
            ticks = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode("ascii")
        except (FileNotFoundError, ProcessLookupError):
            raise psutil.NoSuchProcess(pid) from None
        except (OSError, IndexError, UnicodeDecodeError):
            return None
        return f"{boot}/{ticks}"
    else:  # noqa: RET505 - so that mypy sees that it is another system's
        # macOS and Windows record the start time once; psutil's create_time() depends on the clock, its identity does not.
        process = psutil.Process(pid)
        return repr(getattr(process, "_ident", (pid, process.create_time()))[1])
