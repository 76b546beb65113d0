"""The conversations of a home as a list: titles, search, rename, throw away and take back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from finetune_local import trash
from finetune_local.chat.history import Conversation, History, every
from finetune_local.chat.record import Record
from finetune_local.errors import SpecError
from finetune_local.files import stamp
from finetune_local.paths import Home

KIND = "chat"
"""What a conversation is called in the trash."""

_LONGEST_TITLE = 120


@dataclass(frozen=True)
class Listed:
    """One conversation of the list. `changed` is seconds since the epoch."""

    id: str
    name: str
    changed: float
    turns: int


def read(history: History) -> Conversation:
    """A conversation as it stands, kept in memory until its file changes. To be looked at, not to be changed."""
    return _read(history.path, _stamp(history))


def listed(home: Home, search: str = "") -> list[Listed]:
    """All in which every word of `search` occurs, whatever the case, the one last spoken in first; empty ones are left out."""
    words, found = search.casefold().split(), []
    for history in every(home):
        conversation = read(history)
        if not conversation.exchanges or not all(word in _text(history.path, _stamp(history)) for word in words):
            continue
        with suppress(FileNotFoundError):
            changed = history.path.stat().st_mtime
            found.append(Listed(history.id, conversation.name, changed, len(conversation.turns)))
    return found


def open_one(home: Home, id: str) -> History:  # noqa: A002 - what `chat --continue` calls it
    """The conversation of an id. Raises SpecError where it is gone."""
    history = History(home.chats / f"{id}.jsonl")
    if Path(id).name != id or not history.path.is_file():
        raise SpecError("this conversation is not there any more. Choose another one, or begin a new one.")
    return history


def rename(home: Home, id: str, title: str) -> None:  # noqa: A002
    """Give it a title; "" goes back to its first words. It keeps its place in the list. Raises SpecError, DiskFull."""
    history = open_one(home, id)
    known = history.path.stat()
    Record(history).add({"title": " ".join(title.split())[:_LONGEST_TITLE]})
    os.utime(history.path, ns=(known.st_atime_ns, known.st_mtime_ns))


def remove(home: Home, id: str) -> str:  # noqa: A002
    """Move it to the trash; returns what restore() takes it back by. Raises SpecError, RunError, DiskFull."""
    history = open_one(home, id)
    return trash.throw(home, KIND, read(history).name or id, history.path).key


def restore(home: Home, key: str) -> str:
    """Take one back from the trash; returns its id. Raises SpecError where it is not there, RunError."""
    for removed in trash.every(home, KIND):
        if removed.key == key:
            target, number = removed.source, 2
            while target.exists():
                target = removed.source.with_stem(f"{removed.source.stem}-{number}")
                number += 1
            return trash.put_back(removed, target).stem
    raise SpecError("this conversation is not in the trash any more.")


def lines_of(conversation: Conversation) -> Sequence[str]:
    """All texts of a conversation, for a search."""
    found = [conversation.title or "", conversation.system or ""]
    for exchange in conversation.exchanges:
        found += [exchange.question or "", *(answer.content for answer in exchange.answers)]
    return found


def _stamp(history: History) -> object:
    return stamp(history.path.parent, history.path.name)


@lru_cache(maxsize=512)
def _read(path: Path, _stamp: object) -> Conversation:
    return History(path).read()


@lru_cache(maxsize=512)
def _text(path: Path, known: object) -> str:
    return "\n".join(lines_of(_read(path, known))).casefold()
