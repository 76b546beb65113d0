"""What every input format becomes: a conversation, a plain text, or a pair of answers to one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Source:
    """Where a row came from: the file as the user named it, and its line (in JSON arrays: the item's number), from 1."""

    file: str
    line: int


@dataclass(frozen=True)
class Message:
    """One turn. `train` is False for an assistant turn the data excludes from training (a weight of 0)."""

    role: Role
    content: str
    train: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns in order, or a plain `text` in which every token is supervised (`messages` is then empty).

    `ends` is False if a plain text continues in the next row, so no end-of-text token is supervised after it. `rejected` makes it a
    preference pair: the rejected answer, in place of the last turn, which is the chosen one.
    """

    messages: tuple[Message, ...]
    source: Source
    text: str | None = None
    ends: bool = True
    rejected: Message | None = None

    @property
    def kind(self) -> ExampleKind:
        """The kind of example."""
        return "text" if self.text is not None else "conversation" if self.rejected is None else "pair"

    @property
    def chats(self) -> tuple[tuple[Message, ...], ...]:
        """The chats a template renders for it: none for a text, two for a pair."""
        if self.text is not None:
            return ()
        other = () if self.rejected is None else ((*self.messages[:-1], self.rejected),)
        return (self.messages, *other)


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used, and a sentence that says why."""

    source: Source
    reason: str


class RowRejected(DataError):
    """A row cannot be used; the message is the reason, without the place. Callers turn it into a Rejected."""
