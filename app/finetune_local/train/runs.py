"""The run folder: made, listed, opened, and the only way to know of a run.

run.json          the spec, resolved          events.jsonl   what happened, append-only
data/             encoded rows, data.json     checkpoints/   step-NNNNNN/
adapter/          the result                  report.md      the same for people
worker.json       which process trains        worker.log     what libraries printed
stop              asks the worker to stop     worker.lock    held by the process that trains
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from finetune_local.errors import SpecError, typed
from finetune_local.files import disk_full, sweep, write_text
from finetune_local.paths import Home, bad_name
from finetune_local.spec.fields import did_you_mean
from finetune_local.spec.run import RunSpec, as_tables, parse_spec
from finetune_local.train import events
from finetune_local.workplace import Workplace

FINISH = "finish"
"""Content of the stop file that ends a run for good."""

Status = Literal["running", "finished", "stopped", "failed", "interrupted", "new"]


class Run(Workplace):
    """A run by its folder."""

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
        advice = "What was saved is intact. Make room, then resume."
        with disk_full(self.events_file, advice), self.events_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event.as_json(), ensure_ascii=False) + "\n")

    def history(self) -> Iterator[events.Event]:
        """All events so far; a half-written last line is left out."""
        return map(events.from_json, self.lines())

    def last_event(self) -> events.Event | None:
        """The newest event."""
        line = self.last_line()
        return events.from_json(line) if line else None

    def repair(self) -> None:
        """After a kill: cut a half-written line off events.jsonl and remove half-written folders. For the holder only."""
        if self.events_file.exists():
            os.truncate(self.events_file, self.events_end())
        sweep(self.folder)
        sweep(self.checkpoints)
        self.stop_file.unlink(missing_ok=True)

    def to_finish(self) -> bool:
        """Whether the worker was asked to end the run for good, with the adapter as it is, rather than to leave off."""
        try:
            return self.stop_file.read_text("ascii") == FINISH
        except (OSError, UnicodeDecodeError):
            return False

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


def at_work(home: Home) -> list[Run]:
    """Runs whose worker lives; asked every second, so nothing is read of the others."""
    waiting = [Run(folder) for folder in home.runs.iterdir() if (folder / "worker.json").exists()]
    return [run for run in waiting if run.worker() is not None]


def rename(run: Run, name: str, home: Home) -> Run:
    """Call a run otherwise; its adapter goes with it. Raises SpecError while it is running, or where the name cannot be."""
    if problem := bad_name(name):
        raise SpecError(f"the name {name!r} {problem}.")
    if run.worker() is not None:
        raise SpecError(f"run '{run.name}' is running. Stop it first, or rename it when it has ended.")
    target = home.runs / name
    if target.exists():
        raise SpecError(f"there is a run '{name}' already. Choose another name.")
    run.folder.rename(target)
    renamed = Run(target)
    renamed.write_spec(renamed.spec.model_copy(update={"name": name}))
    return renamed


def remove(run: Run) -> None:
    """Delete a run folder. Raises SpecError while it is running."""
    if run.worker() is not None:
        raise SpecError(f"run '{run.name}' is running. Stop it first: finetune-local runs stop {typed(run.name)}")
    shutil.rmtree(run.folder)


def ask_to_stop(run: Run, patience: float = 0.0, *, finish: bool = False) -> bool:
    """Ask the worker to finish its step and save; waits up to `patience` seconds. True once it has ended.

    With `finish` the run ends there for good; without, `resume` goes on with it.
    """
    run.stop_file.write_text(FINISH if finish else "", "ascii")
    until = time.monotonic() + patience
    while run.worker() is not None and time.monotonic() < until:
        time.sleep(0.05)
    return run.worker() is None
