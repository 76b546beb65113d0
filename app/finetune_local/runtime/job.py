"""Jobs: the request (job.json), the events of a job, and its state read from them."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from finetune_local.runtime.events import Event, EventFormat, Failed, Note
from finetune_local.runtime.kinds import JobKind, kind_of
from finetune_local.runtime.process_folder import ProcessFolder
from finetune_local.runtime.status import ProcessState, Status
from finetune_local.system.errors import SpecError, WorkerDied
from finetune_local.system.messages import message_of, msg
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object


@dataclass(frozen=True, kw_only=True)
class Began(Event):
    """The job was started or restarted."""

    kind = "began"


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """What is being done, the share that is done, 0 to 1 (None: unknown), and current numbers."""

    kind = "progress"
    text: str
    done: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The job is complete; `result` is plain JSON."""

    kind = "finished"
    durable = True
    end = Status.FINISHED
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class StoppedByUser(Event):
    """The user stopped the job."""

    kind = "stopped"
    durable = True
    end = Status.STOPPED


EVENTS = EventFormat(Began, Progress, Note, Finished, StoppedByUser, Failed, aliases={"done": Finished})
"""The events of a job. Earlier versions wrote "done" for "finished"."""


class JobSpec(BaseModel):
    """The content of job.json; `created` is in seconds since the epoch."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    kind: str
    arguments: dict[str, Any]
    created: float

    @model_validator(mode="after")
    def _texts(self) -> Self:
        for name in kind_of(self.kind).text_arguments:
            if not isinstance(self.arguments.get(name), str):
                raise ValueError(f"{name} is no text")
        return self


@dataclass(frozen=True, kw_only=True)
class JobState(ProcessState):
    """A job's state: latest progress, notes so far, and the result or error after its end.

    `began` is in seconds since the epoch; `seconds_left` is an estimate, only while the job runs.
    """

    text: str = ""
    done: float | None = None
    notes: tuple[str, ...] = ()
    result: Mapping[str, Any] | None = None
    error: Failed | None = None
    began: float = 0.0
    seconds_left: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


class _Account:
    """A job's events so far. Each is read once: a download has thousands of them, and windows refresh every second."""

    def __init__(self, job: Job) -> None:
        self._tail = job.tail()
        self._start(0.0)

    def _start(self, began: float) -> None:
        self.progress, self.notes, self.began = Progress(text=""), list[str](), began
        self.result: Mapping[str, Any] | None = None
        self.error: Failed | None = None

    def read(self) -> None:
        """Read the new events."""
        for event in self._tail.read():
            match event:
                case Began():
                    self._start(event.time)
                case Progress():
                    self.progress = event
                case Note():
                    self.notes.append(event.text)
                case Finished():
                    self.result = event.result
                case Failed():
                    self.error = event


_accounts: dict[Path, _Account] = {}
_lock = threading.Lock()


class Job(ProcessFolder):
    """A job, by its folder."""

    format: ClassVar[EventFormat] = EVENTS

    @cached_property
    def spec(self) -> JobSpec:
        """The content of job.json. Raises SpecError if it is damaged."""
        file = self.folder / "job.json"
        try:
            return JobSpec.model_validate(read_json_object(file))
        except ValidationError as error:
            reason = msg(
                "'{name}' is missing or invalid",
                name=".".join(map(str, error.errors()[0]["loc"])) or "arguments",
            )
        except (OSError, ForeignTextError) as error:
            reason = message_of(error)
        raise SpecError(msg("{file}: cannot be read ({error}). Remove it and start again.", file=file, error=reason))

    @property
    def kind(self) -> JobKind:
        """The kind of work. Raises SpecError if job.json is damaged."""
        return kind_of(self.spec.kind)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the work, as plain JSON. Raises SpecError if job.json is damaged."""
        return self.spec.arguments

    def state(self) -> JobState:
        """The job's state, from its events and its lock."""
        now = self.process_state()
        with _lock:
            account = _accounts.setdefault(self.folder, _Account(self))
            account.read()
            progress, notes, began = account.progress, tuple(account.notes), account.began
            result, error = account.result, account.error
        if now.killed:
            words = " | ".join(self.log_tail()) or msg("killed, or out of memory")
            died = WorkerDied(msg("its process ended unexpectedly ({how}). Start it again.", how=words))
            error = Failed.of(died)
        left, done = progress.facts.get("seconds_left"), progress.done
        estimated = now.status is Status.RUNNING and done and not progress.facts
        if left is None and estimated and done and (spent := time.time() - began) > 2:
            left = spent * (1 - done) / done
        return JobState(
            now.status, now.killed, text=progress.text, done=done, notes=notes, result=result, error=error, began=began,
            seconds_left=left, facts=progress.facts,
        )  # fmt: skip

    def raise_for_error(self) -> None:
        """Raise the error that ended the job, if there was one."""
        if (error := self.state().error) is not None:
            raise error.exception()


def forget_account(folder: Path) -> None:
    """Forget the events that were read of a job."""
    with _lock:
        _accounts.pop(folder, None)
