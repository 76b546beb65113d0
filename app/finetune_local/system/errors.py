"""The error tree. Every message is a sentence: what was wrong, where, and what to do next.

    FinetuneError
    ├── UserError                 exit code 2: something the user gave
    │   ├── SpecError             a setting: its name, its value, what is allowed
    │   ├── DataError             a data file: its path, its line
    │   ├── ModelError            a base model: its folder or its name
    │   ├── AdapterError          an adapter that does not fit, or does nothing
    │   ├── DamagedRun            what a run keeps is damaged, or a newer version wrote it
    │   └── Unsupported           the chosen backend cannot do this (a line of its gaps.py)
    ├── RunError                  exit code 1: the work itself failed
    │   ├── TrainingDiverged      the loss became NaN or exploded
    │   ├── OutOfMemory           the device or the machine has no room for a batch
    │   ├── DiskFailed            the disk, its rights or a limit of the system let nothing be written or read
    │   │   └── DiskFull          the disk has no room
    │   ├── DownloadFailed        a download broke off or did not match its checksum
    │   ├── GateFailed            an export does not answer as the adapter does
    │   └── WorkerDied            the training process ended without saying why
    └── Stopped                   exit code 130: the user stopped it; nothing is lost

Known errors are shown without a traceback; anything else is a defect and shows its own.
Only `cli/main.py` turns an error into an exit code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune_local.system.messages import NOTHING, Message, as_message, carrying, message_of, msg


def typed(name: str) -> str:
    """A name as it is typed in a command that a message tells to give: in quotes where a shell would take it apart."""
    if re.fullmatch(r"[\w./:=@%+-]+", name):
        return name
    return '"' + name + '"' if not re.search(r'["$`\\!]', name) else "'" + name.replace("'", "'\\''") + "'"


@contextmanager
def told_of(place: str) -> Iterator[None]:
    """Name the place in every error of what the user gave there; one that names it already, and one of the base model,
    which is no single place's, go on as they are."""
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

    def __init__(self, message: Message | FinetuneError = NOTHING) -> None:
        self.message: Message = message_of(message) if isinstance(message, BaseException) else as_message(message)
        super().__init__(self.message)

    def as_json(self) -> dict[str, Any]:
        """{"error", "message"} and, under "said", what the sentence was made from."""
        return carrying({"error": type(self).__name__, "message": self.message})


class UserError(FinetuneError):
    """Something the user gave cannot be used."""

    exit_code = 2


class SpecError(UserError):
    """A setting is unknown, has a value out of bounds, or does not go with another."""


class DataError(UserError):
    """A data file cannot be used."""


class ModelError(UserError):
    """A base model is missing, incomplete or of a kind that is not supported."""


class AdapterError(UserError):
    """An adapter does not fit its base, is incomplete, or changes nothing."""


class DamagedRun(UserError):
    """What a run keeps (a checkpoint, its data, its settings) is damaged, was changed, or is of a newer version."""


class Unsupported(UserError):
    """The chosen backend cannot do what the spec asks."""


class RunError(FinetuneError):
    """The work failed through no fault of the input."""


class TrainingDiverged(RunError):
    """The loss or the gradient became NaN, infinite or exploded."""


class OutOfMemory(RunError):
    """A batch did not fit into the device's memory; the session's weights are as before the step."""


class DiskFailed(RunError):
    """A file could not be written or read: the disk failed, or is gone, or its rights or a limit of the system forbid it."""


class DiskFull(DiskFailed):
    """A file of the run could not be written for lack of space; the last checkpoint is intact."""


class DownloadFailed(RunError):
    """A download broke off or did not match its checksum."""


class GateFailed(RunError):
    """An exported model does not answer as base + adapter do."""


class WorkerDied(RunError):
    """The training process ended without an event that says why."""


class Stopped(FinetuneError):
    """The user stopped the work; what was done is saved."""

    exit_code = 130
