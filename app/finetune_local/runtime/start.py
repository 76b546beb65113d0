"""Start worker processes and reap those that this process started."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from finetune_local.runtime.worker_files import WorkerFiles
from finetune_local.system.errors import RunError
from finetune_local.system.messages import msg

# On Windows a worker in the same console would end with the console's window.
_OWN_CONSOLE = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Workers that this process started, to be reaped when they end. Whether a worker is alive is read from its folder, not from here."""

_starting = threading.Lock()
"""Serializes the threads of this process; between processes the folder's lock does."""


def start(folders: Sequence[WorkerFiles], module: str, arguments: Sequence[str]) -> None:
    """Start one worker, `python -m module ARGUMENTS`, for one or several folders.

    Returns when that worker, or another one, has claimed the folders. The worker runs in a new session, so neither Ctrl-C nor a
    closed window ends it. Raises RunError if a folder no longer exists.
    """
    with _starting:
        for folder in folders:  # a worker that has written its last event may still be exiting
            if not folder.alive() and (old := _children.pop(folder.folder, None)) is not None:
                with suppress(subprocess.TimeoutExpired):
                    old.wait(30)
        if not any(folder.alive() for folder in folders):
            _start(folders, module, arguments)


def _start(folders: Sequence[WorkerFiles], module: str, arguments: Sequence[str]) -> None:
    before = [folder.worker_text() for folder in folders]
    try:
        log = folders[0].log.open("ab")
    except FileNotFoundError:
        raise _gone(folders[0]) from None
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
    _children.update(dict.fromkeys((folder.folder for folder in folders), process))
    try:
        # A killed worker may have left its worker.json: wait until the text changes or the process ends.
        while process.poll() is None and any(
            folder.worker_text() in (b"", old) for folder, old in zip(folders, before, strict=True)
        ):
            time.sleep(0.02)
    except KeyboardInterrupt:
        process.kill()  # the caller would not learn of it
        raise
    if process.poll() is not None:
        for folder in folders:
            if not folder.folder.exists():
                raise _gone(folder)


def _gone(place: WorkerFiles) -> RunError:
    return RunError(msg("{folder} no longer exists: it was removed or renamed.", folder=place.folder))


def reap(folder: Path | None = None) -> None:
    """Reap children that have ended. With `folder`, wait for its worker to end, if this process started it."""
    if folder is not None:
        if (child := _children.pop(folder, None)) is not None:
            child.wait()
        return
    for known, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(known, None)


def log_line(text: str) -> None:
    """Write to a worker's stderr, which is worker.log; a full disk is ignored."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def command_of(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line of a worker. -P keeps files in the user's folder from being imported in place of libraries of the same name."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """A worker's environment, in which libraries do not use the network."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUTF8": "1",
        # Otherwise macOS' display watchdog ends long GPU commands.
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
    }
