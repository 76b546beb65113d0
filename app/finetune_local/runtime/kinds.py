"""Kinds of long work. Each is declared as `KIND = JobKind(...)` in a module `job_<key>.py` in its feature's folder.

Kinds are found by module name, so adding one takes one new file. Training runs are declared in training/job_run.py without `run`,
because they have their own worker and folder format.
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
    """How a job reports its progress."""

    def __call__(self, text: str, done: float | None = None, **facts: Any) -> None:
        """Report what is being done and the share that is done, 0 to 1 (None: unknown). Raises Stopped if the user stopped the job.

        `facts` are current numbers (bytes, speed); "seconds_left" replaces the estimate made from `done`.
        """
        ...

    def check(self) -> None:
        """Raise Stopped if the user stopped the job; reports nothing."""
        ...

    def note(self, text: str) -> None:
        """Report a sentence for the user."""
        ...


Run = Callable[[Mapping[str, Any], Home, Reporter], Mapping[str, Any]]
"""Does the work for the arguments of job.json; returns its result as plain JSON. Raises Stopped, FinetuneError."""


@dataclass(frozen=True)
class JobKind:
    """A kind of work."""

    key: str
    """The key in the module's name, in job.json and in names of job folders. Its strings in assets/strings are `jobs.<key>`,
    `ended.<key>_finished` and `ended.<key>_failed`."""
    run: Run | None = None
    """None for work that is not started as a job."""
    worker: str = "finetune_local.runtime.worker"
    """The module that runs as the worker process: `python -m <worker> FOLDER HOME`."""
    resumable: bool = False
    """Whether work that was stopped or killed can continue where it was. Its status is then paused, not stopped."""
    logs_restart: bool = True
    """Whether a restart appends an event, so that an earlier last event is not taken for the current state."""
    text_arguments: tuple[str, ...] = ()
    """Arguments that must be strings; a job.json without them is damaged."""
    identity: Callable[[Mapping[str, Any]], object] = dict
    """Maps arguments to a value that is equal for two requests of the same work."""
    makes_adapter: bool = False
    """Whether the result is an adapter named like the folder."""
    clean_up: Callable[[Mapping[str, Any]], None] = lambda _: None
    """Removes the half-written files of a killed worker, given the job's arguments."""


PACKAGE = "finetune_local"
PREFIX = "job_"


def kinds() -> list[str]:
    """The keys of the kinds that can be started as jobs."""
    return [key for key in _modules() if kind_of(key).run is not None]


def kind_of(key: str) -> JobKind:
    """The kind with this key; a kind without `run` if the key is unknown, as in a job of a later version."""
    module = _modules().get(key)
    if module is None:
        return JobKind(key)
    kind: JobKind = importlib.import_module(module).KIND
    return kind


@cache
def _modules() -> Mapping[str, str]:
    """The module of each kind, by key. Folders are listed, so no package is imported to find them."""
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
