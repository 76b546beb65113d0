"""Files with one row per chat message, {"speaker", "text"}: which keys those are, and where a conversation ends.

A conversation ends at a long silence, at a change in a conversation column, or when it is long.
"""

from __future__ import annotations

import calendar
import datetime
import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_local.data.readers.chat_text import time_of
from finetune_local.data.readers.rows import Raw
from finetune_local.data.turns import ROLE_NAMES

LOG = "chat_log"
"""The key of the list of turns in a grouped row, and of the format that reads it."""

SILENCE_SECONDS = 6 * 3600
"""A silence after which the next message starts a new conversation."""

MOST_TURNS = 40
"""Speaker changes after which a conversation is split; a context cannot hold years of chat."""

MOST_CHARACTERS = 40_000
THREADS_OPEN = 256
"""Conversations whose messages may be interleaved in a file."""

SPEAKERS = ("speaker", "sender", "from", "role", "author", "name", "nickname", "username", "发送者", "发言人", "昵称")
TEXTS = ("text", "message", "content", "value", "body", "utterance", "msg", "内容", "消息")
TIMES = ("time", "timestamp", "date", "datetime", "created_at", "sent_at", "ts", "时间", "日期")
THREADS = ("conversation", "conversation_id", "thread", "thread_id", "chat_id", "session_id", "dialogue_id", "dialog_id",
           "会话", "对话")  # fmt: skip
_BYLINES = ("author", "name", "nickname", "username")  # also of documents: then a time must be beside them
_LONGEST_NAME = 60
_NUMBER = re.compile(r"[0-9]{1,40}(?:\.[0-9]{0,40})?")
_MOST_NAMES = 20


@dataclass(frozen=True)
class LogKeys:
    """Which key is what. `several`: more than two people speak, so their names are needed in the text."""

    speaker: str
    text: str
    time: str | None = None
    thread: str | None = None
    several: bool = False

    @property
    def used(self) -> frozenset[str]:
        """The keys that are read."""
        return frozenset(key for key in (self.speaker, self.text, self.time, self.thread) if key)


def keys_of(sample: Sequence[Mapping[str, Any]]) -> LogKeys | None:
    """The keys of rows that are chat messages; None if they lack a speaker or a text."""
    speaker, text = _most(SPEAKERS, sample), _most(TEXTS, sample)
    if speaker is None or text is None:
        return None
    names = _names(sample, speaker)
    others = {name.casefold() for name in names if ROLE_NAMES.get(name.lower()) not in ("system", "tool")}
    return LogKeys(speaker, text, _most(TIMES, sample), _most(THREADS, sample), several=len(others) > 2)


def looks_like_a_chat(sample: Sequence[Mapping[str, Any]], keys: LogKeys) -> bool:
    """Whether such rows are a chat rather than documents with authors: few speakers, each with several messages."""
    names = _names(sample, keys.speaker)
    few = 2 <= len(names) <= min(_MOST_NAMES, max(2, len(sample) // 2))
    return few and (keys.speaker not in _BYLINES or keys.time is not None or keys.thread is not None)


@dataclass
class _Open:
    """A conversation that may continue."""

    line: int
    turns: list[dict[str, str]] = field(default_factory=list)
    changes: int = 0
    characters: int = 0
    time: float | None = None


def conversations(rows: Iterable[Raw], keys: LogKeys, assistant: str | None) -> Iterator[Raw]:
    """Message rows grouped as rows {"chat_log": turns}, each with its first line's number; problems pass through.

    A long conversation is split after an assistant turn, so that no answer loses its question.
    """
    threads: OrderedDict[str, _Open] = OrderedDict()
    assistant = (assistant or "").strip().casefold()
    for line, value in rows:
        if not isinstance(value, Mapping):
            yield line, value
            continue
        message = _message_of(value, keys)
        if message is None:
            continue
        name, text, time = message
        thread = str(value.get(keys.thread)) if keys.thread else ""
        current = threads.get(thread)
        if current is not None and _ends(current, name, time, assistant):
            yield _row(threads.pop(thread), keys)
            current = None
        if current is None:
            if len(threads) >= THREADS_OPEN:
                yield _row(threads.popitem(last=False)[1], keys)
            current = threads[thread] = _Open(line)
        current.changes += not current.turns or current.turns[-1]["from"] != name
        current.characters += len(text)
        current.time = time if time is not None else current.time
        current.turns.append({"from": name, "value": text})
    for rest in sorted(threads.values(), key=lambda one: one.line):
        yield _row(rest, keys)


def when(value: object) -> float | None:
    """Seconds since the epoch of a number, an ISO 8601 text or a time as exports write it; None for anything else."""
    if isinstance(value, str):
        text = value.strip().replace("/", "-")
        if not _NUMBER.fullmatch(text):
            try:
                at = datetime.datetime.fromisoformat(text)
            except ValueError:
                return time_of(value)
            return at.timestamp() if at.tzinfo else float(calendar.timegm(at.timetuple()))
        value = float(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:  # an integer that no float holds
        return None
    if not math.isfinite(seconds):
        return None
    return seconds / 1000 if seconds > 1e11 else seconds


def _message_of(row: Mapping[str, Any], keys: LogKeys) -> tuple[str, str, float | None] | None:
    """Speaker, text and time; None for a row that is no message, such as "Bob has left" or a picture."""
    name, text = row.get(keys.speaker), row.get(keys.text)
    if isinstance(text, list):  # Telegram: plain pieces and formatted ones
        text = "".join(
            part if isinstance(part, str) else str(part.get("text", ""))
            for part in text
            if isinstance(part, str | dict)
        )
    if isinstance(text, int | float) and not isinstance(text, bool) and text == text:
        text = str(text)
    if not isinstance(name, str) or not isinstance(text, str) or not name.strip() or not text.strip():
        return None
    return name.strip(), text.strip(), when(row.get(keys.time)) if keys.time else None


def _ends(current: _Open, name: str, time: float | None, assistant: str) -> bool:
    """Whether a conversation ends before this message."""
    if time is not None and current.time is not None and abs(time - current.time) > SILENCE_SECONDS:
        return True
    if current.changes < MOST_TURNS and current.characters < MOST_CHARACTERS:
        return False
    last = current.turns[-1]["from"]
    if name == last:
        return current.characters > 2 * MOST_CHARACTERS
    return not assistant or last.casefold() == assistant or current.changes >= 2 * MOST_TURNS


def _row(one: _Open, keys: LogKeys) -> tuple[int, dict[str, Any]]:
    return one.line, {"chat_log": one.turns, "several": keys.several}


def _most(known: Sequence[str], sample: Sequence[Mapping[str, Any]]) -> str | None:
    """The first known key that most rows have as a plain value; a list of turns is no message."""
    for key in known:
        having = sum(key in row and not _holds_turns(row[key]) for row in sample)
        if having * 2 > len(sample):
            return key
    return None


def _holds_turns(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and any(isinstance(v, Mapping) and "text" not in v for v in value)
    )


def _names(sample: Sequence[Mapping[str, Any]], key: str) -> Counter[str]:
    found = (row.get(key) for row in sample)
    return Counter(name.strip() for name in found if isinstance(name, str) and 0 < len(name.strip()) <= _LONGEST_NAME)
