"""Start a run's worker and read what it tells, from the run folder alone: whoever looks can go away and come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from finetune_local import errors
from finetune_local.errors import FinetuneError, SpecError, Stopped, WorkerDied, typed
from finetune_local.paths import Home
from finetune_local.train.events import ENDS, Event, Failed, StoppedByUser, from_json
from finetune_local.train.runs import Run

POLL_SECONDS = 0.1

# On Windows a worker in the same console would end when its window is closed.
_OWN_CONSOLE = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""Workers this process started, to be reaped when they end; whether one lives is read from its run folder."""


def start(run: Run, home: Home) -> int:
    """Start the worker process of a run that has none; returns where its events will begin. Raises SpecError.

    Of two that are started at once, the second ends by itself, and following the run shows the first.
    """
    return start_all([run], home)[0]


def start_all(runs: Sequence[Run], home: Home) -> list[int]:
    """Start one worker process for several runs on one base; returns where the events of each will begin."""
    before = [_worker_text(run) for run in runs]
    for run in runs:
        if (pid := run.worker()) is not None:
            raise SpecError(f"run '{run.name}' is being trained already (process {pid}).")
    positions = [run.events_end() for run in runs]
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
    with runs[0].log.open("ab") as log:
        process = subprocess.Popen(
            # -P: a file of the user's folder that is called like a library must not be imported in its place.
            [
                sys.executable,
                "-P",
                "-m",
                "finetune_local.train.worker",
                *(str(run.folder) for run in runs),
                str(home.root),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=os.name != "nt",
            creationflags=_OWN_CONSOLE,
        )
    _children.update(dict.fromkeys((run.folder for run in runs), process))
    try:
        # What a killed worker left says nothing about the new one: wait for another text, or for its end.
        while process.poll() is None and any(
            _worker_text(run) in (b"", old) for run, old in zip(runs, before, strict=True)
        ):
            time.sleep(0.02)
    except KeyboardInterrupt:
        process.kill()  # it would go on unseen
        raise
    return positions


def kill(run: Run) -> None:
    """End a run's worker at once; its last checkpoint stays."""
    import psutil

    if (pid := run.worker()) is not None:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()


def follow(run: Run, position: int = 0) -> Iterator[Event]:
    """Events from a place in events.jsonl to the worker's last one. Raises WorkerDied where it ends without one."""
    for _, event in follow_all([(run, position)]):
        yield event


def follow_all(places: Sequence[tuple[Run, int]]) -> Iterator[tuple[Run, Event]]:
    """The same of several runs at once, each with its events. Raises WorkerDied once the others have been told."""
    tails = [_Tail(run, position) for run, position in places]
    died: list[Run] = []
    while tails:
        for tail in list(tails):
            alive = tail.run.worker() is not None  # asked before reading, so that a last event is never missed
            events = tail.read()
            for event in events:
                yield tail.run, event
            if ended := bool(events) and isinstance(events[-1], ENDS):
                if not [other for other in tails if other is not tail]:
                    _wait_until_gone(tail.run)
            elif not alive and not events:
                _wait_until_gone(tail.run)
                died.append(tail.run)
                ended = True
            if ended:
                tails.remove(tail)
        if tails:
            time.sleep(POLL_SECONDS)
    if died:
        raise WorkerDied(
            f"the training process ended without a word{_last_words(died[0])} What was saved is intact; {go_on(died)}"
        )


def go_on(runs: Sequence[Run]) -> str:
    """What to type to train runs further; each goes on alone."""
    return "go on with: " + ", ".join(f"finetune-local resume {typed(run.name)}" for run in runs)


class _Tail:
    """The end of a run's events.jsonl, read as it grows."""

    def __init__(self, run: Run, position: int) -> None:
        self.run, self._position, self._rest = run, position, b""

    def read(self) -> list[Event]:
        """What is new, up to a last event."""
        path = self.run.folder / "events.jsonl"
        chunk = b""
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._position)
                chunk = file.read()
        self._position += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        result: list[Event] = []
        for line in lines:
            result.append(from_json(json.loads(line)))
            if isinstance(result[-1], ENDS):
                break
        return result


def raise_for(event: Event, run: Run) -> None:
    """Turn a run's last event into the error it stands for; returns where it finished well."""
    if isinstance(event, StoppedByUser):
        raise Stopped(
            f"stopped after step {event.step}; everything is saved. Go on with: finetune-local resume {typed(run.name)}"
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
