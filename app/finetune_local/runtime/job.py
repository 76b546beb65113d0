"""A job's folder: what was asked (job.json), what happened (events.jsonl), and in what it ended.

Lines of events.jsonl: {"event": "began"} at each start, {"event": "progress", "text", "done", "facts"}, {"event": "note", "text"},
and last one of {"event": "done", "result"}, {"event": "stopped"}, {"event": "failed", "error", "message", "traceback"}. All have "time".
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from finetune_local.runtime import process_folder
from finetune_local.runtime.kinds import names
from finetune_local.runtime.process_folder import ProcessFolder
from finetune_local.runtime.rpc import error_of
from finetune_local.system.damaged import Damaged
from finetune_local.system.errors import SpecError
from finetune_local.system.files import ASIDE, sweep_abandoned, write_text
from finetune_local.system.files import remove as remove_files
from finetune_local.system.messages import message_of, msg
from finetune_local.system.paths import Home
from finetune_local.system.trash import moved
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object

Status = Literal["new", "running", "done", "stopped", "failed", "interrupted"]
ENDS: tuple[Status, ...] = ("done", "stopped", "failed")
_KEPT = 200
_SHOWN = {"download": "what", "export": "out"}
"""The argument that lists show of a job, a text."""


@dataclass(frozen=True)
class State:
    """A job at one moment: the newest progress with its facts, the notes so far, and the result or the error once it has ended."""

    status: Status
    text: str
    done: float | None
    notes: tuple[str, ...]
    result: Mapping[str, Any] | None
    error: Mapping[str, Any] | None
    began: float
    seconds_left: float | None
    facts: Mapping[str, Any] = field(default_factory=dict)


class Asked(BaseModel):
    """What job.json holds; `created` is seconds since the epoch."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    kind: str
    arguments: dict[str, Any]
    created: float

    @model_validator(mode="after")
    def _shown(self) -> Self:
        needed = _SHOWN.get(self.kind)
        if needed is not None and not isinstance(self.arguments.get(needed), str):
            raise ValueError(f"{needed} is no text")
        return self


class _Account:
    """What a job's lines say so far, read as they are appended: a long download has thousands, and it is looked at every second."""

    def __init__(self, job: Job) -> None:
        self._tail = job.tail()
        self.text, self.notes = "", list[str]()
        self.done: float | None = None
        self.facts: Mapping[str, Any] = {}
        self.result: Mapping[str, Any] | None = None
        self.error: Mapping[str, Any] | None = None
        self.began = 0.0

    def read(self) -> None:
        """Take in what is new."""
        for line in self._tail.read():
            match line:
                case {"event": "began", "time": int() | float() as when}:
                    self.text, self.done, self.notes, self.facts = "", None, [], {}
                    self.result, self.error, self.began = None, None, float(when)
                case {"event": "progress", "text": str() as text, "done": int() | float() | None as done}:
                    facts = line.get("facts")
                    self.text, self.done, self.facts = text, done, facts if isinstance(facts, dict) else {}
                case {"event": "note", "text": str() as text}:
                    self.notes.append(text)
                case {"event": "done", "result": dict() | None as result}:
                    self.result = result
                case {"event": "failed", "error": str(), "message": str(), "traceback": str()}:
                    self.error = line


_accounts: dict[Path, _Account] = {}
_lock = threading.Lock()


class Job(ProcessFolder):
    """A job by its folder."""

    @cached_property
    def asked(self) -> Asked:
        """job.json. Raises SpecError where it is damaged."""
        file = self.folder / "job.json"
        try:
            return Asked.model_validate(read_json_object(file))
        except ValidationError as error:
            said = msg(
                "'{name}' is missing, or not what it should be",
                name=".".join(map(str, error.errors()[0]["loc"])) or "arguments",
            )
        except (OSError, ForeignTextError) as error:
            said = message_of(error)
        raise SpecError(msg("{file}: cannot be read ({error}). Remove it and begin again.", file=file, error=said))

    @property
    def kind(self) -> str:
        """What it does."""
        return self.asked.kind

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was asked to do it with."""
        return dict(self.asked.arguments)

    @property
    def result_folder(self) -> Path:
        """Where a kind may leave files that belong to its result."""
        return self.folder

    def append(self, event: str, **facts: Any) -> None:
        """Append one line; the last one is on the disk when this returns. Raises DiskFailed."""
        self.add_line({"event": event, "time": time.time(), **facts}, durably=event in ENDS)

    def status(self) -> Status:
        """What it is doing, by its last line and whether its process lives."""
        last = self.last_line()
        if (end := next((end for end in ENDS if last is not None and last.get("event") == end), None)) is not None:
            return end
        if self.alive():
            return "running"
        return "new" if last is None else "interrupted"

    def state(self) -> State:
        """All there is to show."""
        status = self.status()
        with _lock:
            account = _accounts.setdefault(self.folder, _Account(self))
            account.read()
            error, facts, done = account.error, account.facts, account.done
            text, notes, result, began = account.text, tuple(account.notes), account.result, account.began
        if status == "interrupted":
            words = " | ".join(self.log_tail()) or msg("killed, or out of memory")
            error = {
                "error": "WorkerDied",
                "message": msg("its process ended without a word ({how}). Start it again.", how=words),
                "traceback": "",
            }
        left = facts.get("seconds_left")
        if left is None and status == "running" and done and not facts and (spent := time.time() - began) > 2:
            left = spent * (1 - done) / done
        return State(status, text, done, notes, result, error, began, left, facts)

    def raise_for_error(self) -> None:
        """Raise what ended it badly, if anything did."""
        if (error := self.state().error) is not None:
            raise error_of(error)

    def stop(self) -> None:
        """Ask it to end where it can go on later."""
        self.stop_file.touch()


def start(home: Home, kind: str, arguments: Mapping[str, Any]) -> Job:
    """Begin a job in a process of its own, and return while it works. Raises SpecError where there is no such kind."""
    if kind not in names():
        raise SpecError(msg("there is no job '{name}'. Known: {names}.", name=kind, names=", ".join(names())))
    stem = time.strftime("%Y%m%d-%H%M%S") + f"-{kind}"
    folder, number = home.jobs / stem, 1
    while True:
        try:
            folder.mkdir()
            break
        except FileExistsError:
            number += 1
            folder = home.jobs / f"{stem}-{number}"
    job = Job(folder)
    asked = {"kind": kind, "arguments": dict(arguments), "created": time.time()}
    write_text(folder / "job.json", json.dumps(asked, indent=2, ensure_ascii=False) + "\n")
    again(job, home)
    prune(home)
    return job


def again(job: Job, home: Home) -> None:
    """Start a job that has ended once more; a download goes on where it stopped."""
    if job.status() != "running":
        job.wait_for_exit()  # one that has said its last word may still be on its way out
    with job.locked() as idle:
        if idle:  # else another window has begun it since
            job.stop_file.unlink(missing_ok=True)
            job.append("began")
    process_folder.start([job], "finetune_local.runtime.worker", [str(job.folder), str(home.root)])


def every(home: Home, kind: str | None = None) -> list[Job]:
    """All jobs (of a kind), the newest first."""
    named = f"-{kind}" if kind else ""  # as start() calls them, so that those of other kinds are not even read
    found = []
    for job in _all(home):
        if named in job.name and (job.folder / "job.json").is_file():
            with suppress(SpecError):  # damaged() tells of these
                if kind in (None, job.kind):
                    found.append(job)
    return sorted(found, key=lambda job: job.asked.created, reverse=True)


def damaged(home: Home, kind: str | None = None) -> list[Damaged]:
    """Jobs (of a kind, by their folders' names) of which it cannot be read what they were to do; forget() removes them."""
    found = []
    for job in _all(home):
        if (kind is None or f"-{kind}" in job.name) and (job.folder / "job.json").exists():
            try:
                _ = job.asked
            except SpecError as error:
                found.append(Damaged(job.name, job.folder, message_of(error)))
    return sorted(found, key=lambda one: one.name, reverse=True)


def _all(home: Home) -> Iterator[Job]:
    return (Job(folder) for folder in home.jobs.iterdir() if not folder.name.startswith(ASIDE))


def find(home: Home, name: str) -> Job:
    """A job by its name. Raises SpecError."""
    folder = home.jobs / name
    if Path(name).name != name or not (folder / "job.json").exists():
        raise SpecError(msg("there is no job '{name}' any more.", name=name))
    return Job(folder)


def running(home: Home, kind: str | None = None) -> list[Job]:
    """Those at work; asked every second, so nothing is read of the others. damaged() tells of those that cannot be read."""
    found = [job for job in _all(home) if job.worker_file.exists()]
    return [job for job in found if job.alive() and _is(job, kind)]


def _is(job: Job, kind: str | None) -> bool:
    try:
        return job.kind == (kind or job.kind)
    except SpecError:
        return False


def forget(job: Job) -> None:
    """Delete a job's folder. Raises SpecError while it works."""
    if not _delete(job):
        raise SpecError(msg("this job is still at work. Stop it first."))


def prune(home: Home) -> None:
    """Forget the oldest jobs that have ended, so that the folder does not grow for ever."""
    sweep_abandoned(home.jobs)
    for job in every(home)[_KEPT:]:
        _delete(job)


def _delete(job: Job) -> bool:
    """Delete a job's folder, in one step for whoever looks; False where it is at work."""
    with job.locked(moving=True) as idle:
        if idle:
            doomed = job.folder.with_name(ASIDE + job.name)
            remove_files(doomed)
            moved(job.folder, doomed)
            remove_files(doomed)
    gone = idle or not job.folder.exists()
    if gone:
        with _lock:
            _accounts.pop(job.folder, None)
    return gone
