"""Start a run's worker and read what it tells, from the run folder alone: whoever looks can go away and come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from finetune_local import errors
from finetune_local.errors import FinetuneError, SpecError, Stopped, WorkerDied
from finetune_local.paths import Home
from finetune_local.train.events import Event, Failed, Finished, StoppedByUser, from_json
from finetune_local.train.runs import Run

POLL_SECONDS = 0.1
ENDS = (Finished, StoppedByUser, Failed)

# On Windows a worker in the same console would end when its window is closed.
_OWN_CONSOLE = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Workers this process started, to be reaped when they end; whether one lives is read from its run folder."""


def start(run: Run, home: Home) -> int:
    """Start the worker process of a run that has none; returns where its events will begin. Raises SpecError.

    Of two that are started at once, the second ends by itself, and following the run shows the first.
    """
    before = _worker_text(run)
    if (pid := run.worker()) is not None:
        raise SpecError(f"run '{run.name}' is being trained already (process {pid}).")
    position = run.events_end()
    # Libraries must not ask the network, and a worker's own prints belong in its log.
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUTF8": "1",
        # The screen's watchdog ends long GPU commands on a Mac otherwise.
        "AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1",
    }
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            # -P: a file of the user's folder that is called like a library must not be imported in its place.
            [sys.executable, "-P", "-m", "finetune_local.train.worker", str(run.folder), str(home.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=os.name != "nt",
            creationflags=_OWN_CONSOLE,
        )
    _children[run.folder] = process
    try:
        # What a killed worker left says nothing about the new one: wait for another text, or for its end.
        while _worker_text(run) in (b"", before) and process.poll() is None:
            time.sleep(0.02)
    except KeyboardInterrupt:
        process.kill()  # it would go on unseen
        raise
    return position


def kill(run: Run) -> None:
    """End a run's worker at once; its last checkpoint stays."""
    import psutil

    if (pid := run.worker()) is not None:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


def follow(run: Run, position: int = 0) -> Iterator[Event]:
    """Events from a place in events.jsonl to the worker's last one. Raises WorkerDied where it ends without one."""
    path = run.folder / "events.jsonl"
    rest = b""
    while True:
        alive = run.worker() is not None  # asked before reading, so that a last event is never missed
        chunk = b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                chunk = file.read()
        position += len(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            event = from_json(json.loads(line))
            yield event
            if isinstance(event, ENDS):
                _wait_until_gone(run)
                return
        if not alive and not chunk:
            _wait_until_gone(run)
            raise WorkerDied(
                f"the training process ended without a word{_last_words(run)} What was saved is intact; "
                f"go on with: finetune-local resume {run.name}"
            )
        time.sleep(POLL_SECONDS)


def raise_for(event: Event, run: Run) -> None:
    """Turn a run's last event into the error it stands for; returns where it finished well."""
    if isinstance(event, StoppedByUser):
        raise Stopped(
            f"stopped after step {event.step}; everything is saved. Go on with: finetune-local resume {run.name}"
        )
    if isinstance(event, Failed):
        kind = getattr(errors, event.error, None)
        if isinstance(kind, type) and issubclass(kind, FinetuneError):
            raise kind(event.message)
        raise RuntimeError(f"the training process failed ({run.log}):\n{event.traceback}")


def _worker_text(run: Run) -> bytes:
    try:
        return run.worker_file.read_bytes()
    except OSError:
        return b""


def _wait_until_gone(run: Run) -> None:
    if (child := _children.pop(run.folder, None)) is not None:
        child.wait()
    until = time.monotonic() + 30
    while run.worker() is not None and time.monotonic() < until:
        time.sleep(0.02)


def _last_words(run: Run) -> str:
    try:
        lines = [line for line in run.log.read_text("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return "."
    return ". Its last words: " + " | ".join(lines[-3:]) + "." if lines else " (killed, or out of memory)."
