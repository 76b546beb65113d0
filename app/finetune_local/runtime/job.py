"""A job's folder: what was requested (job.json), what happened (events.jsonl), and how it ended."""

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
    """The job was started, or started again."""

    kind = "began"


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """What is being done, the share done from 0 to 1 (None: unknown), and numbers of this moment."""

    kind = "progress"
    text: str
    done: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """The job reached its end; `result` is plain JSON."""

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
"""The events of a job. Versions before the rebuild wrote "done" for "finished"."""


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
    """A job at one moment: the newest progress, the notes so far, and the result or the error once it has ended.

    `began` is in seconds since the epoch; `seconds_left` is an estimate while it runs.
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
    """What the events say so far, read as they are appended: a download has thousands, and windows ask every second."""

    def __init__(self, job: Job) -> None:
        self._tail = job.tail()
        self._start(0.0)

    def _start(self, began: float) -> None:
        self.progress, self.notes, self.began = Progress(text=""), list[str](), began
        self.result: Mapping[str, Any] | None = None
        self.error: Failed | None = None

    def read(self) -> None:
        """Take in the new events."""
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
    """A job by its folder."""

    format: ClassVar[EventFormat] = EVENTS

    @cached_property
    def spec(self) -> JobSpec:
        """job.json. Raises SpecError where it is damaged."""
        file = self.folder / "job.json"
        try:
            return JobSpec.model_validate(read_json_object(file))
        except ValidationError as error:
            said = msg(
                "'{name}' is missing, or not what it should be",
                name=".".join(map(str, error.errors()[0]["loc"])) or "arguments",
            )
        except (OSError, ForeignTextError) as error:
            said = message_of(error)
        raise SpecError(msg("{file}: cannot be read ({error}). Remove it and begin again.", file=file, error=said))

    @property
    def kind(self) -> JobKind:
        """What kind of work it does. Raises SpecError where job.json is damaged."""
        return kind_of(self.spec.kind)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of the work, plain JSON. Raises SpecError where job.json is damaged."""
        return self.spec.arguments

    def state(self) -> JobState:
        """All there is to show."""
        now = self.process_state()
        with _lock:
            account = _accounts.setdefault(self.folder, _Account(self))
            account.read()
            progress, notes, began = account.progress, tuple(account.notes), account.began
            result, error = account.result, account.error
        if now.killed:
            words = " | ".join(self.log_tail()) or msg("killed, or out of memory")
            died = WorkerDied(msg("its process ended without a word ({how}). Start it again.", how=words))
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
        """Raise the error that ended it, if one did."""
        if (error := self.state().error) is not None:
            raise error.exception()


def forget_account(folder: Path) -> None:
    """Drop what was read of a job's events."""
    with _lock:
        _accounts.pop(folder, None)
