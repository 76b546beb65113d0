"""Conversations on disk: chats/ID.jsonl, one line per change, appended and fsynced, never rewritten.

A line has one of these keys: "chat" (the first line), "role" (a turn or the system prompt), "aside" (another answer to the last
question; its value is the adapter), "choose" (continue with that adapter's answer), "expected" (the answer that the user expects),
"undo", "clear", "title". A line that was half written in a crash is skipped.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from finetune_local.data.conversation import Message
from finetune_local.system.errors import DiskFailed, SpecError
from finetune_local.system.fields import did_you_mean
from finetune_local.system.files import failure
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home
from finetune_local.system.untrusted.text import ForeignTextError, open_file, parse_json_object

TITLE_LENGTH = 48
_WITH_TEXT = frozenset({"role", "aside"})
_OF_ANSWER = frozenset({"role", "aside", "content", "adapter"})


@dataclass(frozen=True)
class Answer:
    """One answer: its text, its adapter (None: the base), and its measurements (session.Turn.as_json)."""

    content: str
    adapter: str | None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Exchange:
    """A question and its answers; `chosen` is the index of the answer that the conversation continues with.

    `question` is None if its line was lost in a crash.
    """

    question: str | None
    answers: list[Answer] = field(default_factory=list)
    chosen: int | None = None
    expected: str | None = None
    retries: int = 0
    """How often its answer was replaced by a new one."""

    def answer(self) -> Answer | None:
        """The answer that the conversation continues with."""
        return None if self.chosen is None else self.answers[self.chosen]

    def forget(self) -> None:
        """Remove all answers."""
        self.answers.clear()
        self.chosen = None


@dataclass
class Conversation:
    """The state of a conversation. `begun` is its first line, with the model and adapters it was started with."""

    system: str | None = None
    exchanges: list[Exchange] = field(default_factory=list)
    begun: dict[str, Any] = field(default_factory=dict)
    title: str | None = None
    answered_by: str | None = None
    """The adapter of the last answer; None: the base."""

    @property
    def turns(self) -> list[Message]:
        """The turns in the model's prompt, without the system prompt."""
        found = []
        for exchange in self.exchanges:
            if exchange.question is not None:
                found.append(Message("user", exchange.question))
            if (chosen := exchange.answer()) is not None:
                found.append(Message("assistant", chosen.content))
        return found

    @property
    def open(self) -> bool:
        """Whether the last question has no chosen answer."""
        return bool(self.exchanges) and self.exchanges[-1].chosen is None

    @property
    def name(self) -> str:
        """The title, else the first words of the first question, else ""."""
        first = next((e.question for e in self.exchanges if e.question), "")
        words = " ".join((self.title or first).split())
        if self.title or len(words) <= TITLE_LENGTH:
            return words
        cut = words[:TITLE_LENGTH]
        return (cut.rpartition(" ")[0] if " " in cut[TITLE_LENGTH // 2 :] else cut) + "…"

    def apply(self, line: Mapping[str, Any]) -> None:
        """Apply one line of the file."""
        last = self.exchanges[-1] if self.exchanges else None
        if "chat" in line:
            self.begun = dict(line)
        elif line.get("role") == "system":
            self.system = line["content"] or None
        elif line.get("role") == "user":
            self.exchanges.append(Exchange(line["content"]))
        elif "role" in line or "aside" in line:
            self._answered(line)
        elif "choose" in line:
            self._choose(line["choose"])
        elif "expected" in line and last is not None:
            last.expected = line["expected"]
        elif "title" in line:
            self.title = str(line["title"]).strip() or None
        elif line.get("undo") == "answer":
            if last is not None and last.answers:
                last.retries += 1
                last.forget()
                if last.question is None:
                    self.exchanges.pop()
        elif "undo" in line:
            drop_exchange(self.exchanges)
        elif "clear" in line:
            self.exchanges.clear()

    def _answered(self, line: Mapping[str, Any]) -> None:
        if not self.exchanges or (self.exchanges[-1].chosen is not None and "role" in line):
            self.exchanges.append(Exchange(None))
        last, adapter = self.exchanges[-1], line.get("adapter") if "role" in line else line["aside"]
        last.answers.append(Answer(line["content"], adapter, {k: v for k, v in line.items() if k not in _OF_ANSWER}))
        if "role" in line:
            last.chosen, self.answered_by = len(last.answers) - 1, adapter

    def _choose(self, adapter: str | None) -> None:
        last = self.exchanges[-1] if self.exchanges else None
        for number, answer in enumerate(last.answers if last else ()):
            if last is not None and answer.adapter == adapter:
                last.chosen, self.answered_by = number, adapter


def drop_exchange(exchanges: list[Exchange]) -> bool:
    """Remove the last question and everything after it; False if there is no question."""
    while exchanges:
        if exchanges.pop().question is not None:
            return True
    return False


class History:
    """A conversation's file. It is created with the first line, so an empty chat leaves no file."""

    def __init__(self, path: Path, begun: tuple[str | None, Sequence[str]] | None = None) -> None:
        """`begun` is the model and the adapters of a new conversation; None for a file that exists."""
        self.path = path
        self._begun = begun

    @property
    def id(self) -> str:
        """The file's name without its suffix, as a value of `chat --continue`."""
        return self.path.stem

    def append(self, *added: Mapping[str, Any]) -> None:
        """Append lines and flush them to the disk. Raises DiskFailed."""
        lines = [dict(line) for line in added]
        if self._begun is not None and not self.path.exists():
            model, adapters = self._begun
            lines.insert(0, {"chat": self.id, "created": _now(), "model": model, "adapters": list(adapters)})
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in lines)
        try:
            with self.path.open("ab") as file:
                if file.tell() and not self._ends_with_newline():
                    file.write(b"\n")  # ends a line that was half written in a crash
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            full = failure(error, self.path, msg("Free some space to continue."))
            raise full or DiskFailed(
                msg("{path} could not be written: {error}.", path=self.path, error=os.strerror(error.errno or 0))
            ) from error

    def read(self) -> Conversation:
        """The conversation after all lines."""
        conversation = Conversation()
        for line in self._lines():
            conversation.apply(line)
        return conversation

    def problem(self) -> str | None:
        """Why the conversation cannot be read, as a sentence; None if at least one line can be read or the file is empty."""
        try:
            lines = [line for line in self._raw() if line.strip()]
        except (OSError, ForeignTextError) as error:
            return msg("{file}: cannot be read ({error}). Remove it.", file=self.path, error=error)
        if lines and not any(_line(raw) for raw in lines):
            return msg("{file}: none of its {number} lines can be read. Remove it.", file=self.path, number=len(lines))
        return None

    def _lines(self) -> Iterator[Mapping[str, Any]]:
        with suppress(OSError, ForeignTextError):  # problem() reports these
            for raw in self._raw():
                if (line := _line(raw)) is not None:  # else half written or damaged
                    yield line

    def _raw(self) -> list[bytes]:
        with open_file(self.path) as file:
            return file.read().splitlines()

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


class _Line(BaseModel):
    """The keys of a line; the first line has further ones about model and adapters."""

    model_config = ConfigDict(extra="allow")

    chat: str | None = None
    model: str | None = None
    created: str | None = None
    role: Literal["system", "user", "assistant"] | None = None
    content: str | None = None
    adapter: str | None = None
    aside: str | None = None
    choose: str | None = None
    expected: str | None = None
    title: str | None = None
    tokens: float | None = None
    seconds: float | None = None
    first_seconds: float | None = None
    swap_ms: float | None = None
    left_out: float | None = None
    stop: str | None = None


def _line(raw: bytes) -> Mapping[str, Any] | None:
    """A line, parsed; None if it is invalid."""
    try:
        line = parse_json_object(raw)
        _Line.model_validate(line)
    except ValueError:  # base class of ForeignTextError and pydantic's ValidationError
        return None
    return line if isinstance(line.get("content"), str) or not _WITH_TEXT & line.keys() else None


def new(home: Home, model: str | None = None, adapters: Sequence[str] = ()) -> History:
    """A new conversation, named after the current time; `model` and `adapters` are the folders it is started with."""
    stem = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name, number = stem, 2
    while (home.chats / f"{name}.jsonl").exists():
        name, number = f"{stem}-{number}", number + 1
    return History(home.chats / f"{name}.jsonl", (model, adapters))


def every(home: Home) -> list[History]:
    """All conversations, most recently used first."""
    found = []
    for path in home.chats.glob("*.jsonl"):
        with suppress(FileNotFoundError):  # just removed by another window
            found.append((path.stat().st_mtime_ns, path.name, path))
    return [History(path) for _, _, path in sorted(found, reverse=True)]


def find(home: Home, name: str) -> History:
    """The conversation `name`, or the last one for "latest". Raises SpecError, which suggests similar names."""
    known = every(home)
    if name == "latest" and known:
        return known[0]
    for history in known:
        if history.id == name:
            return history
    names = [history.id for history in known]
    listed = (
        msg(" The last ones: {names}.", names=", ".join(names[:5]))
        if names
        else msg(" There are no conversations yet.")
    )
    raise SpecError(
        msg(
            "--continue {name}: conversation not found.{did_you_mean}",
            name=name,
            did_you_mean=did_you_mean(name, names) or listed,
        )
    )


@dataclass(frozen=True)
class Summary:
    """A conversation in a list: the adapter of its last answer, its number of turns, the first 80 characters of its first question.

    `problem` says why it cannot be read; None if it can.
    """

    id: str
    title: str | None = None
    model: str | None = None
    adapter: str | None = None
    turns: int = 0
    first: str = ""
    problem: str | None = None

    def as_json(self) -> dict[str, object]:
        """What `chat --list --json` prints."""
        values = asdict(self)
        return values if self.problem is not None else {key: values[key] for key in values if key != "problem"}


def summary(history: History) -> Summary:
    """A conversation's entry in a list."""
    if (problem := history.problem()) is not None:
        return Summary(history.id, problem=problem)
    conversation = history.read()
    first = next((m.content for m in conversation.turns if m.role == "user"), "")
    model, title, turns = conversation.begun.get("model"), conversation.title, len(conversation.turns)
    return Summary(history.id, title, model, conversation.answered_by, turns, first[:80])


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
