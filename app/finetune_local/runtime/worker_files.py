"""The files of a worker process: its identity, whether it is alive, how it is stopped.

worker.lock   locked by the worker while it lives: "alive" means that this file is locked
worker.json   its process id; a killed worker leaves it behind
worker.log    output of the worker and its libraries
stop          requests the worker to save and exit
.reserve      space for the last event, in case the disk becomes full

Nothing depends on the observing process, which may end and return. On a network drive without locks worker.json decides whether a
worker is alive (system/process.py); there, two workers that start at the same moment do not exclude each other.
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
from finetune_local.system.messages import Message, msg, system_reason
from finetune_local.system.process import Process
from finetune_local.system.untrusted.text import read_json_object

_RESERVE_BYTES = 65536
_MOST_BYTES = 65536
"""The largest worker.json that is read."""


@dataclass(frozen=True)
class WorkerFiles:
    """The worker files of one folder."""

    folder: Path

    on_full_disk: ClassVar[Message] = msg("Free some space, then start it again.")
    """Advice in the error for a full disk."""

    @property
    def log(self) -> Path:
        """Output of the worker and its libraries."""
        return self.folder / "worker.log"

    @property
    def stop_file(self) -> Path:
        """Its existence requests the worker to save and exit."""
        return self.folder / "stop"

    @property
    def worker_file(self) -> Path:
        """The identity of the worker process."""
        return self.folder / "worker.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the worker."""
        return self.folder / "worker.lock"

    @property
    def reserve_file(self) -> Path:
        """Reserves space for the worker's last event."""
        return self.folder / ".reserve"

    @contextmanager
    def locked(self, *, moving: bool = False) -> Iterator[bool]:
        """Lock the folder for this process. False if another process has locked it or the folder does not exist.

        The system releases the lock however the process ends. `moving`: the folder is about to be renamed, which Windows refuses
        while a file in it is open. There the lock is released at once; if a worker starts meanwhile, its open files make the rename
        fail. Raises RunError if the lock file cannot be opened.
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
                        "{file} cannot be opened ({error}). Fix its permissions, or remove it.",
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
        """Whether the opened file is still this folder's lock file: the folder may have been moved between opening and locking."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.lock_file.stat())
        except OSError:
            return False

    def alive(self) -> bool:
        """Whether a worker has locked the folder. Only on a drive without locks do process id and start time decide."""
        locked = locks.held(self.lock_file)
        if locked is None:
            known = self._recorded()
            return known is not None and known.alive()
        return locked

    def worker_pid(self) -> int | None:
        """The process id of a live worker on this machine; None if unknown, even if alive() is true.

        A worker.json left by a killed worker is not taken for that of the next one, which may not have written its own yet.
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
        """The bytes of worker.json; empty if it does not exist."""
        try:
            return self.worker_file.read_bytes()
        except OSError:
            return b""

    # ── called by the worker ───────────────────────────────────────────────────────────────────────────────

    def write_worker_file(self) -> None:
        """Record this process as the worker. Raises DiskFull."""
        write_text(self.worker_file, json.dumps(Process.here().as_json()) + "\n")

    def claim(self) -> None:
        """Record this process as the worker and reserve space for its last event. Needs the lock. Raises DiskFailed."""
        with disk_full(self.folder, self.on_full_disk):
            self.write_worker_file()
            self.reserve_file.write_bytes(b"\0" * _RESERVE_BYTES)

    def free_reserve(self) -> None:
        """Free the reserved space, so that the last event fits."""
        with suppress(OSError):
            self.reserve_file.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the worker's files, as far as possible; the last thing a worker does."""
        for file in (self.worker_file, self.reserve_file, self.stop_file):
            with suppress(OSError):
                file.unlink(missing_ok=True)


def log_tail(log: Path, most: int = 3) -> list[str]:
    """The last non-empty lines of a worker's log."""
    try:
        text = log.read_text("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-most:]
