"""The conversations of a home: list, search, rename, remove and restore."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from finetune_local.chat.history import Conversation, History, every
from finetune_local.chat.record import Record
from finetune_local.system import trash
from finetune_local.system.errors import Damaged, SpecError
from finetune_local.system.files import stamp
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home

KIND = "chat"
"""The kind of a conversation in the trash."""

_LONGEST_TITLE = 120


@dataclass(frozen=True)
class Listed:
    """A conversation in the list. `changed` is in seconds since the epoch."""

    id: str
    name: str
    changed: float
    turns: int


def read(history: History) -> Conversation:
    """A conversation, cached until its file changes. Shared, so callers must not modify it."""
    return _read(history.path, _stamp(history))


def listed(home: Home, search: str = "") -> list[Listed]:
    """Non-empty conversations that contain every word of `search`, ignoring case; most recently used first.

    Only files that have changed are read again, because windows refresh every second.
    """
    words, found = search.casefold().split(), []
    known = _known.setdefault(home.chats, {})
    there = every(home)
    for history in there:
        entry, now = known.get(history.id), _stamp(history)
        if entry is None or entry.stamp != now:
            entry = known[history.id] = _Known(now, history)
        if entry.listed.turns and all(word in entry.text for word in words):
            found.append(entry.listed)
    for gone in known.keys() - {history.id for history in there}:
        del known[gone]
    return found


def damaged(home: Home) -> list[Damaged]:
    """Conversations that cannot be read; remove() moves them to the trash."""
    found = [(history, _problem(history.path, _stamp(history))) for history in every(home)]
    return [Damaged(history.id, history.path, problem) for history, problem in found if problem is not None]


@lru_cache(maxsize=4096)
def _problem(path: Path, _now: object) -> str | None:
    return History(path).problem()


def open_one(home: Home, id: str) -> History:  # noqa: A002 - what `chat --continue` calls it
    """The conversation with this id. Raises SpecError if it no longer exists."""
    history = History(home.chats / f"{id}.jsonl")
    if Path(id).name != id or not history.path.exists():
        raise SpecError(msg("this conversation no longer exists. Choose another one, or start a new one."))
    return history


def rename(home: Home, id: str, title: str) -> None:  # noqa: A002
    """Set the title; "" restores the default, the first words. Keeps the position in the list. Raises SpecError, DiskFull."""
    history = open_one(home, id)
    known = history.path.stat()
    Record(history).add({"title": " ".join(title.split())[:_LONGEST_TITLE]})
    os.utime(history.path, ns=(known.st_atime_ns, known.st_mtime_ns))


def remove(home: Home, id: str) -> str:  # noqa: A002
    """Move a conversation to the trash; returns the key for restore(). Raises SpecError, RunError, DiskFull."""
    history = open_one(home, id)
    return trash.throw(home, KIND, read(history).name or id, history.path).key


def restore(home: Home, key: str) -> str:
    """Restore a conversation from the trash; returns its id. Raises SpecError if it is not in the trash, RunError."""
    for removed in trash.every(home, KIND):
        if removed.key == key:
            target, number = removed.source, 2
            while target.exists():
                target = removed.source.with_stem(f"{removed.source.stem}-{number}")
                number += 1
            return trash.put_back(removed, target).stem
    raise SpecError(msg("this conversation is no longer in the trash."))


class _Known:
    """A cached list entry, valid for one stamp of the file; `text` is read by the first search."""

    def __init__(self, stamp: object, history: History) -> None:
        self.stamp, self._history = stamp, history
        conversation = history.read()
        changed = 0.0
        with suppress(FileNotFoundError):
            changed = history.path.stat().st_mtime
        self.listed = Listed(history.id, conversation.name, changed, len(conversation.turns))

    @cached_property
    def text(self) -> str:
        """The whole text, case-folded, for searches."""
        conversation = self._history.read()
        found = [conversation.title or "", conversation.system or ""]
        for exchange in conversation.exchanges:
            found += [exchange.question or "", *(answer.content for answer in exchange.answers)]
        return "\n".join(found).casefold()


_known: dict[Path, dict[str, _Known]] = {}


def _stamp(history: History) -> object:
    return stamp(history.path.parent, history.path.name)


@lru_cache(maxsize=32)
def _read(path: Path, _now: object) -> Conversation:
    return History(path).read()
