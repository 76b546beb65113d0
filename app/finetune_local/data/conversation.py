"""What every input format becomes: a conversation, a plain text, or a pair of answers to one prompt.

Also which of them are held out for validation, by a hash of their contents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from finetune_local.spec.objectives import ExampleKind, Objective, learning_from
from finetune_local.system.errors import DataError
from finetune_local.system.messages import Message as Sentence
from finetune_local.system.messages import join_messages, msg

Keys = npt.NDArray[np.uint64]

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

_NAMES: Mapping[ExampleKind, str] = {
    "conversation": msg("a conversation"),
    "text": msg("a plain text"),
    "pair": msg("preference data ('chosen' and 'rejected')"),
}

_PLURALS: Mapping[ExampleKind, str] = {
    "conversation": msg("conversations"),
    "text": msg("plain texts"),
    "pair": msg("pairs of a chosen and a rejected answer"),
}


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


def other_kind(kind: ExampleKind, objective: Objective) -> Sentence:
    """The reason why a row of this kind is rejected, and which objectives learn from it."""
    return msg(
        "it is {names}, but the objective '{key}' learns from {expected}.{instead}",
        names=_NAMES[kind],
        key=objective.key,
        expected=_learned_kinds(objective),
        instead=_instead(kind),
    )


def pair_refused() -> Sentence:
    """The reason why a pair of answers is rejected where each answer would be learned."""
    return msg(
        "it is preference data ('chosen' and 'rejected'), but fine-tuning on answers needs one answer per "
        "row.{instead} Make rows of the prompt and the chosen answer.",
        instead=_instead("pair"),
    )


def _learned_kinds(objective: Objective) -> Sentence:
    return join_messages(" and ", [_PLURALS[kind] for kind in sorted(objective.examples)])


def _instead(kind: ExampleKind) -> str:
    known = learning_from(kind)
    return msg(" Use --objective {known}.", known=" or --objective ".join(known)) if known else ""


def content_key(conversation: Conversation, seed: int) -> int:
    """64 bits of a hash over roles and texts (spaces at their ends aside), whatever file or format they came from.

    Keyed by the seed, so that another seed gives another order. Equal contents have equal keys; among a million different
    ones the chance that any two share a key is 3e-8.
    """
    digest = hashlib.blake2b(digest_size=8, key=seed.to_bytes(8, "little"))
    parts = [("text", conversation.text)] if conversation.text is not None else []
    worse = [] if conversation.rejected is None else [("rejected", conversation.rejected.content)]
    for role, text in [*parts, *((m.role, m.content) for m in conversation.messages), *worse]:
        data = text.strip().encode("utf-8")
        digest.update(f"{role}:{len(data)}:".encode())
        digest.update(data)
    return int.from_bytes(digest.digest(), "big")


def held_out(keys: Keys, fraction: float) -> Keys:
    """The keys for validation, sorted: the lowest round(fraction × unique), at least one and never all of two or more.

    Depends on the set of keys alone, not on their order or on how often one occurs.
    """
    unique = np.unique(keys)
    if fraction <= 0 or len(unique) < 2:
        return unique[:0]
    count = min(max(1, round(fraction * len(unique))), len(unique) - 1)
    return unique[:count]
