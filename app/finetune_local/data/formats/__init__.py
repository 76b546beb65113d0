"""Data formats, one per file, found by listing this folder; the most specific is tried first.

A format's file has
    FORMAT: Format        its name, which rows it recognises, and how it reads one as a conversation
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, runtime_checkable

from finetune_local.data.conversation import Conversation, RowRejected, Source
from finetune_local.data.readers.columns import guess, options
from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.errors import DataError
from finetune_local.system.fields import declared, did_you_mean, in_order
from finetune_local.system.messages import Message, msg

Row = Mapping[str, Any]


@runtime_checkable
class Format(Protocol):
    """The contract of a file in this folder."""

    key: str
    kind: ExampleKind
    """The kind of example its rows are."""
    title: str
    example: str
    order: int
    """Formats with lower numbers are tried first; the most specific has the lowest."""
    keys: frozenset[str]
    """Keys of a row that it reads; others are reported as unused."""

    def recognises(self, row: Row) -> bool:
        """Whether a row has this format's keys; their values may still be invalid."""
        ...

    def read(self, row: Row, source: Source) -> Conversation:
        """The row as a conversation. Raises RowRejected with the reason."""
        ...


@cache
def formats() -> Mapping[str, Format]:
    """All formats by key, in the order they are tried."""
    return in_order(declared(__name__, "FORMAT", Format))  # type: ignore[type-abstract]


def format_named(name: str) -> Format:
    """The format with this key. Raises DataError with a suggestion."""
    key = name.lower().replace("-", "_")
    if key not in formats():
        raise DataError(
            msg(
                "--format {name}: unknown format.{did_you_mean} Known: auto, {names}.",
                name=name,
                did_you_mean=did_you_mean(key, list(formats())),
                names=", ".join(formats()),
            )
        )
    return formats()[key]


def recognise(row: Row, roles: Collection[str] = ()) -> Format | None:
    """The first format whose keys a row has. If the user assigned columns, it must read all those `roles`."""
    return next((f for f in formats().values() if f.keys.issuperset(roles) and f.recognises(row)), None)


def choose(sample: Sequence[Row], roles: Collection[str] = ()) -> Format | None:
    """The format of most rows of a sample; None if no row has one."""
    found = Counter(f.key for row in sample if (f := recognise(row, roles)) is not None)
    return formats()[found.most_common(1)[0][0]] if found else None


def unknown_row(row: Row) -> Message:
    """A sentence about a row that no format recognises."""
    names = [str(k) for k in row]
    known = ["messages", "conversations", "instruction", "output", "prompt", "completion", "text", "chosen", "rejected"]
    hint = next((h for n in names if (h := did_you_mean(n.strip().lower(), known))), "")
    shown = ", ".join(repr(n) for n in names[:8]) or "none"
    likely = {} if hint else guess([{str(key): value for key, value in row.items()}])
    how = msg(" Assign the columns, for example {examples}.", examples=options(likely)) if likely else ""
    return msg(
        "its keys ({keys}) match no known format.{hint}{how} Known: {names}.",
        keys=shown,
        hint=hint,
        how=how,
        names="; ".join(f.example for f in formats().values() if f.example),
    )


def read_row(
    row: Row, source: Source, chosen: Format | None, forced: bool, roles: Collection[str] = ()
) -> Conversation:
    """Read a row by the file's format, else by any that recognises it and reads all `roles`. Raises RowRejected.

    A forced format reads every row. Otherwise formats tried before the chosen one take their rows first: this keeps preference data, which
    looks like chat with two more keys, out of plain chat.
    """
    if chosen is not None and forced:
        return chosen.read(row, source)
    found = recognise(row, roles)
    if found is not None and (chosen is None or found.order < chosen.order or not chosen.recognises(row)):
        return found.read(row, source)
    if chosen is not None and chosen.recognises(row):
        return chosen.read(row, source)
    raise RowRejected(unknown_row(row))
