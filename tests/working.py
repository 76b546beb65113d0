"""Folders in which a process seems to be at work: this one, which holds their locks until release()."""

from __future__ import annotations

import json
import os
from pathlib import Path

from finetune_local.runtime.process_folder import ProcessFolder
from finetune_local.system import locks
from finetune_local.system.process import Process

_held: dict[Path, int] = {}


def mark_running(place: ProcessFolder, pid: int | None = None) -> None:
    """As if this process (or `pid`, where what is shown of it matters) were the worker of a folder."""
    descriptor = os.open(place.lock_file, os.O_RDWR | os.O_CREAT)
    assert locks.acquire(descriptor)
    _held[place.lock_file] = descriptor
    known = Process.here() if pid is None else Process.of(pid)
    place.worker_file.write_text(json.dumps(known.as_json()), "utf-8")


def release(*places: ProcessFolder) -> None:
    """Give folders back, as a worker does at its end."""
    for place in places:
        place.worker_file.unlink(missing_ok=True)
        os.close(_held.pop(place.lock_file))
