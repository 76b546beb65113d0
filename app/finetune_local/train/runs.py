"""The run folder: made, listed, opened, and the only way to know of a run.

run.json          the spec, resolved          events.jsonl   what happened, append-only
data/             encoded rows, data.json     checkpoints/   step-NNNNNN/
adapter/          the result                  report.md      the same for people
worker.json       which process trains        worker.log     what libraries printed
stop              asks the worker to stop     worker.lock    held by the process that trains
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_local.errors import SpecError, typed
from finetune_local.files import disk_full, sweep, write_text
from finetune_local.paths import Home, bad_name
from finetune_local.spec.fields import did_you_mean
from finetune_local.spec.run import RunSpec, as_tables, parse_spec
from finetune_local.train import events

Status = Literal["running", "finished", "stopped", "failed", "interrupted", "new"]


@dataclass(frozen=True)
class Run:
    """A run by its folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def adapter(self) -> Path:
        """Where the trained adapter lies once the run has finished or was stopped."""
        return self.folder / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def data(self) -> Path:
        """Folder of the encoded rows."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What the worker and its libraries printed."""
        return self.folder / "worker.log"

    @property
    def spec(self) -> RunSpec:
        """The spec in run.json. Raises SpecError where it was damaged by hand."""
        path = self.folder / "run.json"
        try:
            return parse_spec(json.loads(path.read_text("utf-8")), str(path))
        except (OSError, json.JSONDecodeError) as error:
            raise SpecError(f"{path}: cannot be read ({error}). The run cannot be resumed.") from error

    def write_spec(self, spec: RunSpec) -> None:
        """Replace run.json."""
        write_text(self.folder / "run.json", json.dumps(as_tables(spec), indent=2, ensure_ascii=False) + "\n")

    def append(self, event: events.Event) -> None:
        """Append one event; a line is written whole or is the file's last. Raises DiskFull."""
        path = self.folder / "events.jsonl"
        advice = "What was saved is intact. Make room, then resume."
        with disk_full(path, advice), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event.as_json(), ensure_ascii=False) + "\n")

    def history(self) -> Iterator[events.Event]:
        """All events so far; a half-written last line is left out."""
        path = self.folder / "events.jsonl"
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield events.from_json(json.loads(line))

    def last_event(self) -> events.Event | None:
        """The newest event, read from the end of the file, so that a list of a thousand runs is quick."""
        path = self.folder / "events.jsonl"
        if not path.exists():
            return None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            reach = 4096
            while True:
                file.seek(max(0, size - reach))
                lines = file.read().split(b"\n")[:-1]
                if len(lines) > 1 or reach >= size:
                    return events.from_json(json.loads(lines[-1])) if lines and lines[-1] else None
                reach *= 8

    def events_end(self) -> int:
        """Size of events.jsonl without a half-written last line: where a reader can begin to follow."""
        path = self.folder / "events.jsonl"
        if not path.exists():
            return 0
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - 65536)
                file.seek(start)
                if (at := file.read(end - start).rfind(b"\n")) >= 0:
                    return start + at + 1
                end = start
        return 0

    @contextmanager
    def taken(self) -> Iterator[bool]:
        """Hold the run for this process; False where another one has it. The system frees it however the process ends."""
        with (self.folder / "worker.lock").open("ab") as file:
            yield _locked(file.fileno())

    def repair(self) -> None:
        """After a kill: cut a half-written line off events.jsonl and remove half-written folders. For the holder only."""
        path = self.folder / "events.jsonl"
        if path.exists():
            os.truncate(path, self.events_end())
        sweep(self.folder)
        sweep(self.checkpoints)
        self.stop_file.unlink(missing_ok=True)

    @property
    def stop_file(self) -> Path:
        """Its existence asks the worker to finish the step, save and end."""
        return self.folder / "stop"

    @property
    def worker_file(self) -> Path:
        """Which process trains; one that was killed leaves it behind."""
        return self.folder / "worker.json"

    def worker(self) -> int | None:
        """Process id of the living worker, or None. Guarded against a reused id by the process's start time."""
        import psutil

        try:
            known: dict[str, Any] = json.loads(self.worker_file.read_text("utf-8"))
            process = psutil.Process(int(known["pid"]))
            alive = (
                abs(process.create_time() - float(known["started"])) < 1 and process.status() != psutil.STATUS_ZOMBIE
            )
        except (OSError, ValueError, KeyError, psutil.Error):
            return None
        return int(known["pid"]) if alive else None

    def status(self) -> Status:
        """What the run is doing, by its last event and whether its process lives."""
        last = self.last_event()
        if isinstance(last, events.Finished):
            return "finished"
        if self.worker() is not None:
            return "running"
        if isinstance(last, events.StoppedByUser):
            return "stopped"
        if isinstance(last, events.Failed):
            return "failed"
        return "new" if last is None else "interrupted"


def create(home: Home, spec: RunSpec) -> Run:
    """A new run folder with its spec. Raises SpecError where the name is taken or cannot be a folder's name."""
    if spec.name is not None:
        problem = bad_name(spec.name)
        if problem:
            raise SpecError(f"--run {spec.name!r} {problem}.")
        folder = home.runs / spec.name
        try:
            folder.mkdir()
        except FileExistsError:
            raise SpecError(
                f"--run {spec.name}: there is a run of that name already. Choose another name, or go on with it: "
                f"finetune-local resume {typed(spec.name)}"
            ) from None
    else:
        stem = re.sub(r"[^\w.-]+", "-", Path(spec.data.files[0]).stem if spec.data.files else "run").strip("-.")[:40]
        number = 1
        while True:
            folder = home.runs / f"{stem or 'run'}-{spec.method.key}-{number}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
    run = Run(folder)
    run.checkpoints.mkdir()
    run.write_spec(spec.model_copy(update={"name": run.name}))
    return run


def find(home: Home, name: str) -> Run:
    """A run by name or folder. Raises SpecError naming near ones."""
    for folder in (home.runs / name, Path(name).expanduser()):
        # A run.json alone may be a config of the user's, in a folder with other things that `remove` would delete.
        if (folder / "run.json").exists() and (folder / "checkpoints").is_dir():
            return Run(folder.resolve())
    known = [run.name for run in every(home)]
    listed = f" Known runs: {', '.join(known[:8])}." if known else " There are no runs yet."
    raise SpecError(f"there is no run '{name}' in {home.runs}.{did_you_mean(name, known) or listed}")


def every(home: Home) -> list[Run]:
    """All runs, the newest first."""
    found = [Run(folder) for folder in home.runs.iterdir() if (folder / "run.json").exists()]
    return sorted(found, key=lambda run: (run.folder / "run.json").stat().st_mtime, reverse=True)


def remove(run: Run) -> None:
    """Delete a run folder. Raises SpecError while it is running."""
    if run.worker() is not None:
        raise SpecError(f"run '{run.name}' is running. Stop it first: finetune-local runs stop {typed(run.name)}")
    shutil.rmtree(run.folder)


def ask_to_stop(run: Run, patience: float = 0.0) -> bool:
    """Ask the worker to finish its step and save; waits up to `patience` seconds. True once it has ended."""
    run.stop_file.touch()
    until = time.monotonic() + patience
    while run.worker() is not None and time.monotonic() < until:
        time.sleep(0.05)
    return run.worker() is None


def _locked(descriptor: int) -> bool:
    """Lock an open file without waiting; False where another process holds it. Ends with the file or the process."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # some network drives know no locks
    return True
