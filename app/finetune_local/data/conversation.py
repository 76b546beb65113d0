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

    `ends` is False where a plain text continues in the next row, so that no end-of-text token is learned after it.
    `rejected` makes it a preference pair: the worse answer in the place of the last turn, which is the chosen one.
    """

    messages: tuple[Message, ...]
    source: Source
    text: str | None = None
    ends: bool = True
    rejected: Message | None = None

    @property
    def kind(self) -> ExampleKind:
        """The kind of example it is."""
        return "text" if self.text is not None else "conversation" if self.rejected is None else "pair"

    @property
    def chats(self) -> tuple[tuple[Message, ...], ...]:
        """The chats that a template renders for it: none for a text, two for a pair."""
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
    """One row cannot be used; the message is the reason, without the place. Whoever reads on makes a Rejected of it."""
