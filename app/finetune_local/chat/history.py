"""Conversations on disk: chats/ID.jsonl, one line per thing that happened, appended and fsynced, never rewritten.

A line has one of the keys "chat" (the first line), "role" (a turn, or the system prompt), "undo" or "clear". A line that was
half written when the machine went down is left out when the conversation is read again.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_local.data.conversation import Message
from finetune_local.errors import DiskFull, SpecError
from finetune_local.paths import Home
from finetune_local.spec.fields import did_you_mean


@dataclass
class Conversation:
    """A conversation as it stands: the system prompt, the turns in order, and what it was begun with."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    begun: dict[str, Any] = field(default_factory=dict)
    answered_by: str | None = None
    """Adapter that gave the last answer; None: the base."""

    def apply(self, line: Mapping[str, Any]) -> None:
        """Let one line of the file happen."""
        if "chat" in line:
            self.begun = dict(line)
        elif line.get("role") == "system":
            self.system = line["content"] or None
        elif "role" in line:
            self.turns.append(Message(line["role"], line["content"]))
            if line["role"] == "assistant":
                self.answered_by = line.get("adapter")
        elif line.get("undo") == "answer":
            if self.turns and self.turns[-1].role == "assistant":
                self.turns.pop()
        elif "undo" in line:
            drop_exchange(self.turns)
        elif "clear" in line:
            self.turns.clear()


def drop_exchange(turns: list[Message]) -> bool:
    """Remove the last question and what followed it; False where there is none."""
    while turns:
        if turns.pop().role == "user":
            return True
    return False


class History:
    """One conversation's file. It is made with the first line, so that a chat nobody spoke in leaves nothing."""

    def __init__(self, path: Path, begun: Mapping[str, Any] | None = None) -> None:
        """`begun` is what the first line says of model and adapter; None for a file that exists."""
        self.path = path
        self._begun = dict(begun) if begun is not None else None

    @property
    def id(self) -> str:
        """The file's name without its ending, as `chat --continue` takes it."""
        return self.path.stem

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line, safe against a crash right after. Raises DiskFull."""
        lines = [dict(line)]
        if self._begun is not None and not self.path.exists():
            lines.insert(0, {"chat": self.id, "created": _now(), **self._begun})
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in lines)
        try:
            with self.path.open("ab") as file:
                if file.tell() and not self._ends_with_newline():
                    file.write(b"\n")  # after a crash in mid-line: the half line stays by itself
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DiskFull(
                f"{self.path} could not be written: {os.strerror(error.errno or 0)}. Make room to go on."
            ) from error

    def read(self) -> Conversation:
        """The conversation as the lines leave it."""
        conversation = Conversation()
        for line in self._lines():
            conversation.apply(line)
        return conversation

    def _lines(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            for raw in self.path.read_bytes().splitlines():
                try:
                    line = json.loads(raw)
                except (json.JSONDecodeError, UnicodeDecodeError):
                    continue  # the half line of a crash
                if isinstance(line, dict):
                    yield line

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def new(home: Home, begun: Mapping[str, Any]) -> History:
    """A conversation named after the time."""
    stem = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name, number = stem, 2
    while (home.chats / f"{name}.jsonl").exists():
        name, number = f"{stem}-{number}", number + 1
    return History(home.chats / f"{name}.jsonl", begun)


def every(home: Home) -> list[History]:
    """All conversations, the one last spoken in first."""
    return [
        History(path)
        for path in sorted(home.chats.glob("*.jsonl"), key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True)
    ]


def find(home: Home, name: str) -> History:
    """The conversation `name`, or the last one for "latest". Raises SpecError naming near ones."""
    known = every(home)
    if name == "latest" and known:
        return known[0]
    for history in known:
        if history.id == name:
            return history
    names = [history.id for history in known]
    listed = f" The last ones: {', '.join(names[:5])}." if names else " There are no conversations yet."
    raise SpecError(f"--continue {name}: there is no such conversation.{did_you_mean(name, names) or listed}")


def summary(history: History) -> dict[str, Any]:
    """A plain object for lists: id, model, the adapter that answered last, number of turns, and how it begins."""
    conversation = history.read()
    first = next((m.content for m in conversation.turns if m.role == "user"), "")
    return {
        "id": history.id,
        "model": conversation.begun.get("model"),
        "adapter": conversation.answered_by,
        "turns": len(conversation.turns),
        "first": first[:80],
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
