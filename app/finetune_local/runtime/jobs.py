"""Start, restart, list, find and remove the jobs of a home."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune_local.runtime.job import Began, Job, forget_account
from finetune_local.runtime.kinds import JobKind, kinds
from finetune_local.runtime.status import Status
from finetune_local.system.errors import Damaged, SpecError
from finetune_local.system.files import ASIDE, sweep_abandoned, write_text
from finetune_local.system.files import remove as remove_files
from finetune_local.system.messages import message_of, msg
from finetune_local.system.paths import Home
from finetune_local.system.trash import moved

_KEPT = 200
"""Number of jobs that are kept; older ones are removed when they have ended."""

_starting = threading.Lock()


def start(home: Home, kind: JobKind, arguments: Mapping[str, Any]) -> Job:
    """Start a job; returns when its worker has claimed the folder. Raises SpecError if the kind cannot be started."""
    if kind.run is None:
        raise SpecError(msg("there is no job '{name}'. Known: {names}.", name=kind.key, names=", ".join(kinds())))
    stem = time.strftime("%Y%m%d-%H%M%S") + f"-{kind.key}"
    folder, number = home.jobs / stem, 1
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
            folder = home.jobs / f"{stem}-{number}"
    job = Job(folder)
    spec = {"kind": kind.key, "arguments": dict(arguments), "created": time.time()}
    write_text(folder / "job.json", json.dumps(spec, indent=2, ensure_ascii=False) + "\n")
    restart(job, home)
    prune(home)
    return job


def start_once(home: Home, kind: JobKind, arguments: Mapping[str, Any]) -> Job:
    """Start a job, or return the running one that does the same work (see JobKind.identity). Raises SpecError."""
    with _starting:  # start() returns once the job is running, so the next caller sees it
        requested = kind.identity(arguments)
        for job in running(home, kind):
            if kind.identity(job.arguments) == requested:
                return job
        return start(home, kind, arguments)


def restart(job: Job, home: Home) -> None:
    """Start a worker for a job that has none. Work of a resumable kind continues where it was."""
    if job.status() is not Status.RUNNING:
        job.wait_for_exit()  # the worker of an ended job may still be exiting
    with job.locked() as idle:
        if idle:  # otherwise another window has just restarted it
            job.stop_file.unlink(missing_ok=True)
            job.append(Began())
    job.start(str(home.root))


def every(home: Home, kind: JobKind | None = None) -> list[Job]:
    """All jobs (of a kind), newest first, except those whose job.json is damaged."""
    found = []
    for job in _all(home, kind):
        if (job.folder / "job.json").is_file():
            with suppress(SpecError):  # damaged() lists these
                if kind is None or kind.key == job.spec.kind:
                    found.append(job)
    return sorted(found, key=lambda job: job.spec.created, reverse=True)


def damaged(home: Home, kind: JobKind | None = None) -> list[Damaged]:
    """Jobs (of a kind, by folder name) whose job.json cannot be read; remove() deletes them."""
    found = []
    for job in _all(home, kind):
        if (job.folder / "job.json").exists():
            try:
                _ = job.spec
            except SpecError as error:
                found.append(Damaged(job.name, job.folder, message_of(error)))
    return sorted(found, key=lambda one: one.name, reverse=True)


def _all(home: Home, kind: JobKind | None = None) -> Iterator[Job]:
    """All jobs, damaged ones included, or those whose folder is named after a kind. No files are read."""
    named = f"-{kind.key}" if kind else ""
    return (Job(folder) for folder in home.jobs.iterdir() if named in folder.name and not folder.name.startswith(ASIDE))


def find(home: Home, name: str) -> Job:
    """A job by its name. Raises SpecError if there is none."""
    folder = home.jobs / name
    if Path(name).name != name or not (folder / "job.json").exists():
        raise SpecError(msg("job '{name}' no longer exists.", name=name))
    return Job(folder)


def running(home: Home, kind: JobKind | None = None) -> list[Job]:
    """The running jobs (of a kind), except damaged ones. Windows call this every second, so files of the others are not read."""
    found = [job for job in _all(home) if job.worker_file.exists()]
    return [job for job in found if job.alive() and _is(job, kind)]


def _is(job: Job, kind: JobKind | None) -> bool:
    try:
        return job.spec.kind == (kind.key if kind else job.spec.kind)
    except SpecError:
        return False


def clean_up_killed(home: Home, kind: JobKind) -> None:
    """Remove half-written files of killed jobs of a kind."""
    for job in every(home, kind):
        if job.process_state().killed:
            kind.clean_up(job.arguments)


def remove(job: Job) -> None:
    """Delete a job's folder and the half-written files of a killed worker. Raises SpecError if it is running."""
    with suppress(SpecError):  # damaged job.json: its files are not known
        if job.process_state().killed:
            job.kind.clean_up(job.arguments)
    if not _delete(job):
        raise SpecError(msg("this job is still running. Stop it first."))


def prune(home: Home) -> None:
    """Remove the oldest ended jobs, so that the folder does not grow without limit."""
    sweep_abandoned(home.jobs)
    for job in every(home)[_KEPT:]:
        _delete(job)


def _delete(job: Job) -> bool:
    """Delete a job's folder, atomically for other readers; False if it is running."""
    with job.locked(moving=True) as idle:
        if idle:
            doomed = job.folder.with_name(ASIDE + job.name)
            remove_files(doomed)
            moved(job.folder, doomed)
            remove_files(doomed)
    gone = idle or not job.folder.exists()
    if gone:
        forget_account(job.folder)
    return gone
