"""The error tree. Every message is a sentence: what was wrong, where, and what to do next.

    FinetuneError
    ├── UserError                 exit code 2: the user's input
    │   ├── SpecError             a setting: its name, its value, what is allowed
    │   ├── DataError             a data file: its path, its line
    │   ├── ModelError            a base model: its folder or its name
    │   │   └── ModelNotFound     no model with this name or path is on this machine
    │   ├── AdapterError          an adapter that does not fit its base, or has no effect
    │   ├── DamagedRun            a run's files are damaged, or were written by a newer version
    │   └── Unsupported           the chosen backend cannot do this (a Gap in its device.py)
    ├── RunError                  exit code 1: the work failed
    │   ├── TrainingDiverged      the loss became NaN or exploded
    │   ├── OutOfMemory           the device or the machine is out of memory
    │   ├── DiskFailed            the disk, its permissions or a system limit prevents reading or writing
    │   │   └── DiskFull          the disk is full
    │   ├── DownloadFailed        a download was interrupted or did not match its checksum
    │   ├── VerificationFailed    an export does not answer as the adapter does
    │   └── WorkerDied            the worker process ended without an event
    └── Stopped                   exit code 130: stopped by the user; nothing is lost

These errors are shown without a traceback; any other exception is a bug and is shown with its traceback.
Only `cli/main.py` turns an error into an exit code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from finetune_local.system.messages import NOTHING, Message, as_message, carrying, message_of, msg


def typed(name: str) -> str:
    """A name as the user would type it in a command: quoted if a shell would split it."""
    if re.fullmatch(r"[\w./:=@%+-]+", name):
        return name
    return '"' + name + '"' if not re.search(r'["$`\\!]', name) else "'" + name.replace("'", "'\\''") + "'"


@contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Prefix errors about the user's input with the place. Not those that name it already, nor errors about the base model, which
    belongs to no single place.
    """
    try:
        yield
    except UserError as error:
        named = next(iter(error.message.values.values()), "")
        if isinstance(error, ModelError) or named.startswith(place):
            raise
        raise type(error)(msg("{place}: {error}", place=place, error=error)) from None


class FinetuneError(Exception):
    """Base of all errors that are shown to the user as a sentence."""

    exit_code = 1
    code: ClassVar[str] = "FinetuneError"
    """The error's name in events.jsonl and --json. It stays when a class is renamed."""

    def __init_subclass__(cls) -> None:
        cls.code = vars(cls).get("code", cls.__name__)

    def __init__(self, message: Message | FinetuneError = NOTHING) -> None:
        self.message: Message = message_of(message) if isinstance(message, BaseException) else as_message(message)
        super().__init__(self.message)

    def as_json(self) -> dict[str, object]:
        """{"error", "message"} and, under "said", what the sentence was made from."""
        return carrying({"error": self.code, "message": self.message})


class UserError(FinetuneError):
    """The user's input cannot be used."""

    exit_code = 2


class SpecError(UserError):
    """A setting is unknown, out of bounds, or contradicts another."""


class UnknownName(SpecError):
    """A setting, method or objective that this version does not have; a newer one may."""

    code = "SpecError"


class DataError(UserError):
    """A data file cannot be used."""


class ModelError(UserError):
    """A base model is missing, incomplete or of an unsupported architecture."""


class ModelNotFound(ModelError):
    """No model with this name or path is on this machine."""

    code = "ModelError"


class AdapterError(UserError):
    """An adapter does not fit its base, is incomplete, or has no effect."""


class DamagedRun(UserError):
    """A run's files (a checkpoint, its data, its settings) are damaged, were edited, or are of a newer version."""


class Unsupported(UserError):
    """The chosen backend cannot do what the spec asks."""


class RunError(FinetuneError):
    """The work failed through no fault of the input."""


class TrainingDiverged(RunError):
    """The loss or the gradient became NaN, infinite or exploded."""


class OutOfMemory(RunError):
    """A batch did not fit into memory; the session's weights are unchanged."""


class DiskFailed(RunError):
    """A file could not be written or read: the disk failed or is gone, or permissions or a system limit forbid it."""


class DiskFull(DiskFailed):
    """No space left; the last checkpoint is intact."""


class DownloadFailed(RunError):
    """A download was interrupted or did not match its checksum."""


class VerificationFailed(RunError):
    """An exported model does not answer as base + adapter do."""

    code = "GateFailed"


class WorkerDied(RunError):
    """The worker process ended without an event that says why."""


class Stopped(FinetuneError):
    """The user stopped the work; completed steps are saved."""

    exit_code = 130


def error_class(code: str) -> type[FinetuneError] | None:
    """The class with this `code`; None for a name this version does not know."""
    waiting = [FinetuneError]
    for known in waiting:
        if known.code == code:
            return known
        waiting += known.__subclasses__()
    return None


@dataclass(frozen=True)
class Damaged:
    """A damaged item by name and path; `problem` is a sentence."""

    name: str
    place: Path
    problem: str
