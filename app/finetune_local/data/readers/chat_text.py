"""Chats exported as plain text: time, name, message. Lines without a time continue the message before.

Supported are WhatsApp's formats ("[12/31/23, 10:15] Alice: hi", "31.12.23, 10:15 - Alice: hi"), QQ's and IRC's, and, only with
--format chat_log, "Alice: hi" without times, which other texts contain too.
"""

from __future__ import annotations

import calendar
import datetime
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from finetune_local.data.readers import rows
from finetune_local.system.messages import msg

Order = Literal["dmy", "mdy", "ymd"]

_STAMP = (
    r"(?P<date>\d{1,4}[./-]\d{1,2}[./-]\d{1,4}),?\s{0,2}(?P<noon>上午|下午|中午|凌晨|晚上|早上)?\s{0,2}"
    r"(?P<clock>\d{1,2}[:.]\d{2}(?:[:.]\d{2})?)(?:\s?(?P<half>[AaPp])\.?\s?[Mm]\.?)?"
)
_FORMS = (
    re.compile(rf"\[{_STAMP}\]\s?(?P<name>[^:：\n]{{1,60}}?)[:：]\s?(?P<text>.*)"),
    re.compile(rf"{_STAMP}\s?[-–—]\s(?P<name>[^:：\n]{{1,60}}?)[:：]\s?(?P<text>.*)"),
    re.compile(rf"\[?{_STAMP}\]?\s{{1,3}}<[@+%~ ]?(?P<name>[^<>\n]{{1,60}})>\s(?P<text>.*)"),
    re.compile(
        rf"{_STAMP}\s{{1,3}}(?P<name>[^\n]{{1,60}}?)(?:\(\d{{4,12}}\)|<[^<>@\s]{{1,60}}@[^<>\s]{{1,60}}>)\s{{0,3}}(?P<text>)$"
    ),
    re.compile(rf"{_STAMP}\s{{1,3}}(?P<name>[^:：\[\]()/=\n]{{1,40}}?)[:：]\s(?P<text>.*)"),
)
_PLAIN = re.compile(r"(?P<name>[^:：\[\]()/=\n]{1,40}?)[:：]\s(?P<text>.*)")
_ANY_STAMP = re.compile(rf"\[?{_STAMP}\]?(?:\s|$)")
_LEVELS = frozenset(("error", "info", "warn", "warning", "debug", "trace", "fatal", "critical", "notice", "severe"))
_MARKS = dict.fromkeys(map(ord, "\ufeff\u200e\u200f\u202a\u202b\u202c\u2066\u2067\u2068\u2069"))
_SPACES = dict.fromkeys(map(ord, "\u202f\u00a0"), " ")
_INSERTED = "\u200e"  # WhatsApp puts it before what it writes itself: "image omitted"
_PLACEHOLDER = re.compile(r"<[^<>]{1,60}>")
_EDITED = re.compile(r"<[^<>]{3,60}>")
_LOOKED_AT = 400  # lines
_FEWEST = 3
_LONGEST_MESSAGE = 100_000


@dataclass(frozen=True)
class ChatText:
    """How a text file is a chat: its line format, the order of its dates, and without times the speakers' names."""

    form: re.Pattern[str]
    order: Order = "dmy"
    names: frozenset[str] = frozenset()


def begins(text: str) -> bool:
    """Whether a text starts like an export; some start with a bracket, like JSON."""
    first = next((line for line in text.split("\n", 8) if line.strip()), "")
    return _FORMS[0].match(_clean(first)) is not None


def recognised(head: str, *, forced: bool = False) -> ChatText | None:
    """The chat format of a file's first lines between two or more speakers; None if it is no chat."""
    found = [_clean(line) for line in head.split("\n")[:_LOOKED_AT] if line.strip()]
    fewest = 1 if forced else min(_FEWEST, max(2, len(found)))
    for form in _FORMS:
        matches = [match for line in found if (match := form.match(line))]
        names = Counter(match["name"].strip() for match in matches)
        if len(matches) < max(fewest, 0.2 * len(found)) or {name.lower() for name in names} & _LEVELS:
            continue
        # What has no mark but a colon could be anything: its speakers must speak more than once.
        several = len(names) > 1 and (form is not _FORMS[-1] or len(names) * 2 <= len(matches))
        if forced or several:
            return ChatText(form, _order([m["date"] for m in matches], halves=any(m["half"] for m in matches)))
    if forced:
        names = Counter(match["name"].strip() for line in found if (match := _PLAIN.match(line)))
        often = frozenset(name for name, times in names.items() if times > 1) or frozenset(names)
        return ChatText(_PLAIN, names=often) if often else None
    return None


def messages(stream: BinaryIO, kind: ChatText) -> Iterator[rows.Raw]:
    """Messages as rows {"speaker", "text", "time"}, each with its first line's number; time is in seconds or None."""
    start, current, parts, size = 0, None, list[str](), 0
    for number, raw in rows.lines(stream):
        if isinstance(raw, rows.Problem):
            yield number, raw
            continue
        try:
            line = raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            yield number, rows.Problem(msg("it is not valid UTF-8. Save the file as UTF-8."))
            continue
        match = _match(line, kind)
        if match is None and not _ANY_STAMP.match(_clean(line)):
            if current is not None:
                size += len(line)
                if size < _LONGEST_MESSAGE:
                    parts.append(line.translate(_MARKS))
            continue
        if current is not None and (row := _row(current, parts, size, kind)) is not None:
            yield start, row
        start, current = number, match  # a time without a name is a note of the program: it ends the message before
        inserted = match is not None and _is_inserted(line, match["text"])
        parts, size = ["" if match is None or inserted else match["text"]], 0
    if current is not None and (row := _row(current, parts, size, kind)) is not None:
        yield start, row


def time_of(text: str) -> float | None:
    """Seconds since the epoch of a time as exports write it; None for other texts."""
    match = _ANY_STAMP.match(_clean(text.strip()))
    return None if match is None else _time(match, _order([match["date"]], halves=bool(match["half"])))


def _match(line: str, kind: ChatText) -> re.Match[str] | None:
    match = kind.form.match(_clean(line))
    return None if match is None or (kind.names and match["name"].strip() not in kind.names) else match


def _row(match: re.Match[str], parts: list[str], size: int, kind: ChatText) -> dict[str, object] | rows.Problem | None:
    if size >= _LONGEST_MESSAGE:
        return rows.Problem(
            msg(
                "the message is longer than {number} characters. Is the rest of the file really a chat?",
                number=f"{_LONGEST_MESSAGE:,}",
            )
        )
    text = "\n".join(parts).strip()
    if _PLACEHOLDER.fullmatch(text):
        return None  # "<Media omitted>" in whatever language
    if text.endswith(">") and _EDITED.fullmatch(text, last := max(0, text.rfind("<"))):
        text = text[:last].rstrip()
    time = None if kind.form is _PLAIN else _time(match, kind.order)
    return {"speaker": match["name"].strip(), "text": text, "time": time} if text else None


def _is_inserted(line: str, text: str) -> bool:
    """Whether WhatsApp's own mark precedes the text."""
    at = line.rfind(text) if text else -1
    return at > 0 and line[at - 1] == _INSERTED


def _clean(line: str) -> str:
    return line.translate(_MARKS | _SPACES).rstrip("\r\n")


def _order(dates: list[str], *, halves: bool) -> Order:
    """Day first, unless a date rules it out or the clock is American."""
    parts = [[int(part) for part in re.split(r"[./-]", date)] for date in dates]
    if all(part[0] > 31 for part in parts):
        return "ymd"
    if any(part[0] > 12 for part in parts):
        return "dmy"
    american = any(part[1] > 12 for part in parts) or (halves and all("/" in date for date in dates))
    return "mdy" if american else "dmy"


def _time(match: re.Match[str], order: Order) -> float | None:
    first, second, third = (int(part) for part in re.split(r"[./-]", match["date"]))
    year, month, day = {"ymd": (first, second, third), "dmy": (third, second, first), "mdy": (third, first, second)}[
        order
    ]
    hour, minute, *seconds = (int(part) for part in re.split(r"[:.]", match["clock"]))
    afternoon = (match["half"] or "").lower() == "p" or match["noon"] in ("下午", "晚上", "中午")
    if (match["half"] or match["noon"]) and hour <= 12:
        hour = hour % 12 + 12 * afternoon
    try:
        at = datetime.datetime(year + 2000 if year < 100 else year, month, day, hour, minute, sum(seconds))
    except ValueError:
        return None
    return float(calendar.timegm(at.timetuple()))
