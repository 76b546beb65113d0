"""The files by which a worker is known from outside: which process it is, whether it is alive, how it is asked to stop.

worker.lock   locked by the worker as long as it lives; a lock that is held is what "alive" means
worker.json   its process id; a killed worker leaves it behind
worker.log    what the worker and its libraries printed
stop          asks the worker to save and end
.reserve      room for the last event on a disk that becomes full

Nothing depends on the process that looks: it can end, be killed and come back. On a network drive without locks worker.json
decides who is alive (system/process.py); two workers that start there at the same moment are not kept apart.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from finetune_local.system import locks
from finetune_local.system.errors import RunError
from finetune_local.system.files import disk_full, write_text
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.process import Process
from finetune_local.system.untrusted.text import read_json_object

_RESERVE_BYTES = 65536
_MOST_BYTES = 65536
"""Size of a worker.json that is read."""


@dataclass(frozen=True)
class WorkerFiles:
    """Those of one folder."""

    folder: Path

    on_full_disk: ClassVar[str] = msg("Make room, then start it again.")
    """What the user is told to do on a full disk."""

    @property
    def log(self) -> Path:
        """What the worker and its libraries printed."""
        return self.folder / "worker.log"

    @property
    def stop_file(self) -> Path:
        """Its existence asks the worker to save and end."""
        return self.folder / "stop"

    @property
    def worker_file(self) -> Path:
        """Which process the worker is."""
        return self.folder / "worker.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the worker."""
        return self.folder / "worker.lock"

    @property
    def reserve_file(self) -> Path:
        """Keeps room for the worker's last event."""
        return self.folder / ".reserve"

    @contextmanager
    def locked(self, *, moving: bool = False) -> Iterator[bool]:
        """Lock the folder for this process; False where another process has it locked, or where the folder is gone.

        The system releases the lock however the process ends. `moving`: the folder is about to be renamed, which Windows refuses
        while a file in it is open. There the lock is released at once; a worker that starts all the same has files open in the
        folder, and the system refuses to move it.
        """
        descriptor = self._lock()
        if descriptor is not None and moving and os.name == "nt":
            os.close(descriptor)
            yield True
            return
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _lock(self) -> int | None:
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
                known = self._recorded()
                mine = known is None or known.pid == os.getpid() or not known.alive()
            if mine and self._is_lock_file(descriptor):
                return descriptor
            os.close(descriptor)
            if not mine:
                return None

    def _is_lock_file(self, descriptor: int) -> bool:
        """Whether an open lock file is still this folder's: the folder may have been moved between opening and locking."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.lock_file.stat())
        except OSError:
            return False

    def alive(self) -> bool:
        """Whether a worker holds the lock. No clock and no process id decides this, but on a drive without locks."""
        held = locks.held(self.lock_file)
        if held is None:
            known = self._recorded()
            return known is not None and known.alive()
        return held

    def worker_pid(self) -> int | None:
        """The living worker's process id, where it is known and of this machine. alive() says whether there is a worker.

        A worker.json that a killed worker left is not taken for that of the next one, which may not have written its own yet.
        """
        if not self.alive() or (known := self._recorded()) is None:
            return None
        return known.pid if known.alive() else None

    def _recorded(self) -> Process | None:
        try:
            return Process.read(read_json_object(self.worker_file, _MOST_BYTES))
        except (OSError, ValueError):
            return None

    def worker_text(self) -> bytes:
        """worker.json as it stands; empty where there is none."""
        try:
            return self.worker_file.read_bytes()
        except OSError:
            return b""

    # ── for the worker itself ──────────────────────────────────────────────────────────────────────────────

    def write_worker_file(self) -> None:
        """Record this process as the worker. Raises DiskFull."""
        write_text(self.worker_file, json.dumps(Process.here().as_json()) + "\n")

    def claim(self) -> None:
        """What a worker does first, with the lock held: record itself and reserve room for its last event. Raises DiskFailed."""
        with disk_full(self.folder, self.on_full_disk):
            self.write_worker_file()
            self.reserve_file.write_bytes(b"\0" * _RESERVE_BYTES)

    def free_reserve(self) -> None:
        """Free the reserved room, so that the last event fits."""
        with suppress(OSError):
            self.reserve_file.unlink(missing_ok=True)

    def release(self) -> None:
        """What a worker does last: remove its files, as far as that is possible."""
        for file in (self.worker_file, self.reserve_file, self.stop_file):
            with suppress(OSError):
                file.unlink(missing_ok=True)


def log_tail(log: Path, most: int = 3) -> list[str]:
    """The last lines of a worker's log that are not empty."""
    try:
        text = log.read_text("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-most:]
