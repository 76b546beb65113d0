"""Rows of a JSON file that is no JSON Lines: items of an array, at the top or under a key, or values one after the other.

Streaming and linear in the size of the file; memory holds one row. A row that cannot be used costs itself alone wherever its end
can be found: by its brackets, or by the next place that begins as the file's first row does.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from json import JSONDecodeError
from typing import Any, BinaryIO

from finetune_local.data.conversation import RowRejected
from finetune_local.data.readers import rows
from finetune_local.data.readers.rows import Problem, Raw
from finetune_local.system.messages import Message, message_of, msg, quoted, without_full_stop
from finetune_local.system.untrusted.text import ForeignTextError, check_parts, is_text, parse_json_at

CHUNK = 1 << 16
"""Bytes that are read at once, at least. Python counts the lines before each error from the beginning of the text."""

_WINDOW = 64
_NEAR_THE_END = 12  # no word or escape whose first part alone is an error is longer: -Infinity, \ud83d\ude00
_BAD_BYTES = re.compile("[\udc80-\udcff]")
_SPACE = re.compile(r"[ \t\r\n\ufeff]*")
_COMMA = re.compile(r"[ \t\r\n]*,[ \t\r\n]*(?=[^ \t\r\n\]])")
_HEAD = re.compile(r'\{[ \t\r\n]{0,80}"[^"\\]{1,80}"')
_BRACKETS = re.compile(r'"|[\[{]+|[\]}]+')
_CLOSED = re.compile(r'(?:[^"\[\]{}]++|\[[^"\[\]{}]*+\]|\{[^"\[\]{}]*+\})*+')  # nothing in it stays open
_IN_STRING = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)


@dataclass(frozen=True)
class _Among:
    """What rows stand among: where one ends that is no object, list or text, and which characters may follow a row, if not any."""

    end: re.Pattern[str]
    next: str = ""


_ITEMS = _Among(re.compile(r'["\[{\]},]'), ",]{[")
_VALUES = _Among(re.compile(r'["\[{\]}\n]'))


class _Broken(Exception):
    """Nothing more can be read; the message says where and why."""


def json_rows(stream: BinaryIO, array: str | None) -> Iterator[Raw]:
    """Rows of a stream of UTF-8, numbered from 1: items of the array under a key or (array "") of the one at the top.

    With array None, the values that stand one after the other.
    """
    reader = _Reader(stream)
    try:
        if array is None:
            yield from reader.values()
            return
        if array:
            yield from reader.members({array})
        elif reader.peek() == "[":
            yield from reader.items()
        if reader.peek():
            raise _Broken(reader.place(msg("more stands after the end")))
    except _Broken as error:
        yield (
            reader.number + 1,
            Problem(msg("the JSON breaks off here ({error}); nothing after it could be read.", error=error)),
        )


def array_of_objects(stream: BinaryIO, names: Collection[str]) -> str | None:
    """The first key of the object in a stream that is one of those names (in small letters) and holds an array of objects."""
    reader = _Reader(stream)
    try:
        for key in reader.names():
            if key.lower() in names and reader.peek() == "[":
                reader.take()
                if reader.peek() == "{":
                    return key
                reader.skip(depth=1)
            else:
                reader.skip()
    except _Broken:
        pass  # the stream is the head of a file and ends within a value
    return None


class _Text:
    """A part of a stream as text. Bytes that are no UTF-8 stand in it as surrogates, so that they cost their row alone."""

    def __init__(self, stream: BinaryIO) -> None:
        self.text, self.at, self.ended = "", 0, False
        self._stream = stream
        self._ahead: list[str] = []  # in pieces of CHUNK, the nearest last: what was read beyond a long row
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._damaged = False
        self._counted, self._line, self._line_begins = 0, 1, 0  # up to where lines are counted, and the line there

    def more(self) -> None:
        """Read on: as much as there is, so that reading a long row again and again stays linear. What lies before `at` goes."""
        size = max(CHUNK, len(self.text) - self.at)
        if self._ahead:
            count = -(-size // CHUNK)
            added = "".join(self._ahead[: -count - 1 : -1])
            del self._ahead[-count:]
        else:
            raw = self._stream.read(size)
            self.ended = not raw
            added = self._decoder.decode(raw, self.ended)
        self._count(self.at)
        self._counted, self._line_begins = 0, self._line_begins - self.at
        self._damaged |= not is_text(added)
        self.text, self.at = self.text[self.at :] + added, 0

    def settle(self) -> None:
        """Put aside what was read beyond a long row, so that short ones after it find a short text again."""
        if len(self.text) <= 4 * CHUNK:
            return
        self._count(self.at)
        self._counted, self._line_begins = 0, self._line_begins - self.at
        pieces = [self.text[start : start + CHUNK] for start in range(self.at, len(self.text), CHUNK)]
        self._ahead += reversed(pieces)
        self.text, self.at, self.ended = "", 0, False

    def peek(self) -> str:
        """The next character that is no space, at which `at` then is; nothing at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = self.at if match is None else match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more()

    def take(self) -> None:
        """Go past the character that peek() has found."""
        self.at += 1

    def place(self, said: str, at: int | None = None) -> Message:
        """What there is to say, with the line and the column of a place at or behind the last one that was asked for."""
        at = self.at if at is None else at
        self._count(at)
        return msg(
            "line {line}, column {column}: {said}", line=self._line, column=at - self._line_begins + 1, said=said
        )

    def damaged(self, end: int) -> bool:
        """Whether there are bytes that are no UTF-8 between `at` and an end."""
        return self._damaged and _BAD_BYTES.search(self.text, self.at, end) is not None

    def _count(self, at: int) -> None:
        """Count lines up to a place, from where they are counted: so all places together cost one look at the text."""
        if at > self._counted and (breaks := self.text.count("\n", self._counted, at)):
            self._line += breaks
            self._line_begins = self.text.rfind("\n", self._counted, at) + 1
        self._counted = max(self._counted, at)


class _Reader(_Text):
    """Goes through the values of a stream. `number` is that of the row that was yielded last."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.number = 0
        self._head: str | None = None  # how the first row begins: { "key"

    def values(self) -> Iterator[Raw]:
        """Values that stand one after the other."""
        while self.peek():
            row = self._row(_VALUES)
            self.settle()
            self.number += 1
            yield self.number, row

    def items(self) -> Iterator[Raw]:
        """Rows of the array that begins here, to its end."""
        self.take()
        row: Any = None
        comma = True
        while (mark := self.peek()) != "]":
            if comma:
                yield from self._plain_rows()
                mark = self.peek()
            if not mark:
                raise _Broken(self.place(msg("the array has no end")))
            if mark == "," and not comma:
                self.take()
                comma = True
                continue
            if not comma and mark in "{[" and not isinstance(row, Problem):
                yield self.number + 1, Problem(msg("no comma stands between it and the row before; both were read."))
            row = self._row(_ITEMS)
            self.settle()
            self.number += 1
            yield self.number, row
            comma = False
        if comma and self.number:
            yield self.number + 1, Problem(msg("a comma stands before the end of the array, but no row follows it."))
        self.take()

    def _plain_rows(self) -> Iterator[Raw]:
        """Rows of an array that are in memory with a comma and what follows it, and have no fault: nearly all, so this is quick."""
        head, damaged, longest = self._beginning(), self._damaged, rows.MAX_ROW_BYTES // 4
        text, at = self.text, self.at
        while not damaged:
            try:
                value, end = parse_json_at(text, at)
            except (JSONDecodeError, ForeignTextError):
                return
            comma = _COMMA.match(text, end)
            if comma is None or end - at > longest or (head and text.find(head, at + 1, end) >= 0):
                return
            self.at = at = comma.end()
            self.number += 1
            yield self.number, value

    def members(self, wanted: Collection[str]) -> Iterator[Raw]:
        """Rows of the arrays under those keys of the object that begins here, to its end."""
        for key in self.names():
            if key in wanted and self.peek() == "[":
                yield from self.items()
            else:
                self.skip()

    def names(self) -> Iterator[str]:
        """Keys of the object that begins here, to its end; whoever asks for the next one has gone past the value."""
        if self.peek() != "{":
            raise _Broken(self.place(msg("an object is expected")))
        self.take()
        while (mark := self.peek()) != "}":
            if mark == ",":
                self.take()
                continue
            if mark != '"':
                raise _Broken(self.place(msg("a key is expected") if mark else msg("the object has no end")))
            try:
                key = self._parsed()
            except (JSONDecodeError, ForeignTextError, RowRejected) as error:
                raise _Broken(self.place(_said(error))) from None
            if self.peek() != ":":
                raise _Broken(self.place(msg("a colon is expected")))
            self.take()
            yield str(key)
        self.take()

    def skip(self, depth: int = 0) -> None:
        """Go past the value that begins here, or to the end of what has been open `depth` times."""
        self.peek()
        finder = _End(depth, _ITEMS.end)
        finder.at = self.at
        while not finder.found(self.text, len(self.text)):
            if self.ended:
                raise _Broken(self.place(msg("a value has no end")))
            self.at = finder.at
            self.more()
            finder.at = 0
        self.at = finder.at

    def _row(self, among: _Among) -> Any | Problem:
        """The row that begins here, or why there is none; afterwards `at` is behind it."""
        try:
            return self._parsed(is_row=True)
        except JSONDecodeError as error:
            place = self.place(_said(error), error.pos)
            self._leave(error.pos, among, place)
            return Problem(msg("it is not JSON ({place}).", place=place))
        except (ForeignTextError, RowRejected) as error:
            self._leave(None, among, self.place(_said(error)))
            return rows.problem(error)

    def _parsed(self, *, is_row: bool = False) -> Any:
        """The value that begins here; goes past it. Raises JSONDecodeError, ForeignTextError, RowRejected, and then stays."""
        while True:
            try:
                value, end = parse_json_at(self.text, self.at)
            except JSONDecodeError as error:
                if self.ended or not _goes_on(error, len(self.text)):
                    raise
            else:
                if end < len(self.text) or self.ended:  # else a number may go on
                    self._check(end)
                    if is_row and self._beginning() and self.text.find(self._beginning(), self.at + 1, end) >= 0:
                        self._head = ""  # rows hold such beginnings within, so none says where a row begins
                    self.at = end
                    return value
            if len(self.text) - self.at > rows.MAX_ROW_BYTES:
                raise RowRejected(rows.too_long())
            check_parts(self.text, self.at)
            self.more()

    def _beginning(self) -> str:
        """How the first row begins, where it is an object: with its first key. Asked where a row begins."""
        if self._head is None and (match := _HEAD.match(self.text, self.at)):
            self._head = match[0]
        return self._head or ""

    def _check(self, end: int) -> None:
        size = end - self.at
        if 4 * size > rows.MAX_ROW_BYTES:
            size = len(self.text[self.at : end].encode("utf-8", "surrogateescape"))
        if size > rows.MAX_ROW_BYTES:
            raise RowRejected(rows.too_long())
        if self.damaged(end):
            raise RowRejected(rows.NOT_UTF8)

    def _leave(self, wrong: int | None, among: _Among, said: str) -> None:
        """Go to the end of the row that begins here and cannot be used. Raises _Broken with what is said where there is none.

        Where its syntax is wrong at a place, its brackets may mislead: then a beginning like the first row's comes before them.
        """
        end, head, window = _End(0, among.end), self._beginning(), _WINDOW
        end.at, sought, lost = self.at, max(self.at + 1, wrong or 0), False
        while True:
            stop = min(len(self.text), max(end.at, sought) + window)
            found = not lost and end.found(self.text, stop)
            if head and (wrong is not None or lost):
                begins = self.text.find(head, sought, end.at if found else stop)
                if begins >= 0:
                    self.at = begins
                    return
            if found:
                self.at = end.at
                mark = self.peek()
                if not among.next or (mark and mark in among.next):
                    return
                end.at, sought, lost = self.at, self.at, True
            if lost and not head:
                raise _Broken(said)
            if stop == len(self.text) and not found:
                if self.ended:
                    raise _Broken(said)
                sought = max(sought, stop - len(head))  # a beginning may lie across the end
                self.at = sought if lost else min(sought, end.at)
                end.at, sought = end.at - self.at, sought - self.at
                self.more()
            window = min(2 * window, CHUNK)


class _End:
    """Looks for the end of a value by its brackets and quotes alone, whatever stands between them; window by window."""

    def __init__(self, depth: int, end_of_plain: re.Pattern[str]) -> None:
        self.at, self._depth, self._plain = 0, depth, end_of_plain
        self._quoted = self._begun = False

    def found(self, text: str, stop: int) -> bool:
        """Whether the end, at which `at` then is, comes before a place; else looking goes on from `at`."""
        while self.at < stop:
            if self._quoted:
                quoted = _IN_STRING.match(text, self.at, stop)
                self.at = stop if quoted is None else quoted.end()
                if quoted is None or not quoted[1]:
                    return False
                self._quoted = False
                continue
            if self._depth and (closed := _CLOSED.match(text, self.at, stop)):
                self.at = closed.end()
            match = (_BRACKETS if self._depth else self._plain).search(text, self.at, stop)
            self._begun |= match is None or match.start() > self.at
            if match is None:
                self.at = stop
                return False
            self.at = match.end()
            if match[0] == '"':
                self._quoted = self._begun = True
            elif match[0][0] in "[{":
                if not self._depth and self._begun:
                    self.at = match.start()
                    return True
                self._depth += len(match[0])
                self._begun = True
            elif not self._depth:
                self.at = match.start() if self._begun else match.end()
                return True
            elif len(match[0]) >= self._depth:
                self.at = match.start() + self._depth
                return True
            else:
                self._depth -= len(match[0])
        return False


def _goes_on(error: JSONDecodeError, length: int) -> bool:
    """Whether an error may only say that the text ends within the value."""
    return error.msg.startswith("Unterminated") or error.pos >= length - _NEAR_THE_END


def _said(error: JSONDecodeError | ForeignTextError | RowRejected) -> str:
    return quoted(error.msg) if isinstance(error, JSONDecodeError) else without_full_stop(message_of(error))
