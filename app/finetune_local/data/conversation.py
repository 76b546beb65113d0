"""What every input format becomes: a conversation, or a plain text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_local.system.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Source:
    """Where a row came from: the file as the user named it, and its line (JSON arrays: the item's number), from 1."""

    file: str
    line: int


@dataclass(frozen=True)
class Message:
    """One turn. `train` is False for an assistant turn the data says not to learn from (a weight of 0)."""

    role: Role
    content: str
    train: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns in order, or a plain `text` of which every token is learned (then `messages` is empty).

    `ends` is False where a plain text goes on in the next row, so that no end-of-text token is learned after it.
    """

    messages: tuple[Message, ...]
    source: Source
    text: str | None = None
    ends: bool = True


@dataclass(frozen=True)
class Rejected:
    """A row that was set aside, and a sentence that says why."""

    source: Source
    reason: str


class RowRejected(DataError):
    """One row cannot be used; the message is the reason, without the place. Whoever reads on makes a Rejected of it."""
