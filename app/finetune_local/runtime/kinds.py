"""Kinds of work that runs in a process folder, each declared as `KIND = JobKind(...)` in a module `job_<key>.py` of its feature.

They are found by the modules' names, so a new kind is one new file. The kind of a training run is declared in
training/job_run.py; it has no `run`, as it has a worker and a folder format to itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from finetune_local.system.paths import Home


class Reporter(Protocol):
    """How a job reports what it is doing."""

    def __call__(self, text: str, done: float | None = None, **facts: Any) -> None:
        """Report progress: what is being done, and the share done from 0 to 1 (None: unknown). Raises Stopped if the user asked.

        `facts` are numbers of this moment (bytes, speed); "seconds_left" replaces the estimate that is made from `done`.
        """
        ...

    def check(self) -> None:
        """Raise Stopped if the user asked the job to stop; report nothing."""
        ...

    def note(self, text: str) -> None:
        """Report a sentence for the user."""
        ...


Run = Callable[[Mapping[str, Any], Home, Reporter], Mapping[str, Any]]
"""Does the work with the arguments of job.json and returns the result as plain JSON. Raises Stopped, FinetuneError."""


@dataclass(frozen=True)
class JobKind:
    """A kind of work."""

    key: str
    """As in the module's name, in job.json, and in the names of job folders. Its words in assets/strings are `jobs.<key>`,
    `ended.<key>_finished` and `ended.<key>_failed`."""
    run: Run | None = None
    """None for work that is not started as a job."""
    worker: str = "finetune_local.runtime.worker"
    """The module that runs as the worker process: `python -m <worker> FOLDER HOME`."""
    resumable: bool = False
    """Whether work that was stopped or killed continues where it was; it is then paused, not stopped."""
    logs_restart: bool = True
    """Whether a restart appends an event, so that an earlier last event is never taken for the present state."""
    text_arguments: tuple[str, ...] = ()
    """Arguments that must be texts; a job.json without them is damaged."""
    identity: Callable[[Mapping[str, Any]], object] = dict
    """What is equal for two requests of the same work, given their arguments."""
    makes_adapter: bool = False
    """Whether finished work is an adapter with the folder's name."""
    clean_up: Callable[[Mapping[str, Any]], None] = lambda _: None
    """Removes what a killed worker left half-written, given the job's arguments."""


PACKAGE = "finetune_local"
PREFIX = "job_"


def kinds() -> list[str]:
    """The keys of all kinds that are started as jobs."""
    return [key for key in _modules() if kind_of(key).run is not None]


def kind_of(key: str) -> JobKind:
    """The kind of a key; one without `run` where there is none of that key, as for a job of a later version."""
    module = _modules().get(key)
    if module is None:
        return JobKind(key)
    kind: JobKind = importlib.import_module(module).KIND
    return kind


@cache
def _modules() -> Mapping[str, str]:
    """The module of each kind. Packages are listed by their folders, so nothing is imported to find them."""
    found: dict[str, str] = {}
    package = importlib.import_module(PACKAGE)
    pending = [
        (f"{PACKAGE}.{module.name}", module.name) for module in pkgutil.iter_modules(package.__path__) if module.ispkg
    ]
    for name, folder in pending:
        for module in pkgutil.iter_modules([str(Path(path) / folder) for path in package.__path__]):
            if module.ispkg:
                pending.append((f"{name}.{module.name}", f"{folder}/{module.name}"))
            elif module.name.startswith(PREFIX):
                found[module.name.removeprefix(PREFIX)] = f"{name}.{module.name}"
    return dict(sorted(found.items()))
