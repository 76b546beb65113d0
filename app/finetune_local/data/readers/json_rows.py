"""Rows of JSON files other than JSON Lines: items of an array, at the top level or under a key, or consecutive values.

Streaming, linear in the file's size, with one row in memory. A malformed row is skipped alone if its end can be found: by its brackets,
or by the next place that starts like the file's first row.
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
"""Minimum bytes per read. Python counts the lines before each error from the start of the text."""

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
    """The surroundings of rows: where one ends that is no object, list or text, and which characters may follow a row."""

    end: re.Pattern[str]
    next: str = ""


_ITEMS = _Among(re.compile(r'["\[{\]},]'), ",]{[")
_VALUES = _Among(re.compile(r'["\[{\]}\n]'))


class _Broken(Exception):
    """Reading cannot continue; the message gives the place and the reason."""


def json_rows(stream: BinaryIO, array: str | None) -> Iterator[Raw]:
    """Rows of a UTF-8 stream, numbered from 1: items of the array under a key, or (array "") of the top-level array.

    With array None, consecutive values.
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
            raise _Broken(reader.place(msg("there is more text after the end")))
    except _Broken as error:
        yield (
            reader.number + 1,
            Problem(msg("the JSON is invalid from here on ({error}); the rest could not be read.", error=error)),
        )


def array_of_objects(stream: BinaryIO, names: Collection[str]) -> str | None:
    """The first key of the stream's object that is one of these names (lower case) and contains an array of objects."""
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
    """A window of a stream as text. Invalid UTF-8 appears as surrogates, so that only its row is rejected."""

    def __init__(self, stream: BinaryIO) -> None:
        self.text, self.at, self.ended = "", 0, False
        self._stream = stream
        self._ahead: list[str] = []  # in pieces of CHUNK, the nearest last: what was read beyond a long row
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._damaged = False
        self._counted, self._line, self._line_begins = 0, 1, 0  # up to where lines are counted, and the line there

    def more(self) -> None:
        """Read as much again as is buffered, so that extending a long row stays linear. Text before `at` is dropped."""
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
        """Return what was read beyond a long row, so that the next rows find a short buffer."""
        if len(self.text) <= 4 * CHUNK:
            return
        self._count(self.at)
        self._counted, self._line_begins = 0, self._line_begins - self.at
        pieces = [self.text[start : start + CHUNK] for start in range(self.at, len(self.text), CHUNK)]
        self._ahead += reversed(pieces)
        self.text, self.at, self.ended = "", 0, False

    def peek(self) -> str:
        """The next non-space character, to which `at` moves; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = self.at if match is None else match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more()

    def take(self) -> None:
        """Move past the character peek() found."""
        self.at += 1

    def place(self, reason: str, at: int | None = None) -> Message:
        """The message with the line and column of a position, which must not precede the last one requested."""
        at = self.at if at is None else at
        self._count(at)
        return msg(
            "line {line}, column {column}: {said}", line=self._line, column=at - self._line_begins + 1, said=reason
        )

    def damaged(self, end: int) -> bool:
        """Whether there is invalid UTF-8 between `at` and an end."""
        return self._damaged and _BAD_BYTES.search(self.text, self.at, end) is not None

    def _count(self, at: int) -> None:
        """Count lines up to a position, continuing from the last count, so all positions together cost one pass."""
        if at > self._counted and (breaks := self.text.count("\n", self._counted, at)):
            self._line += breaks
            self._line_begins = self.text.rfind("\n", self._counted, at) + 1
        self._counted = max(self._counted, at)


class _Reader(_Text):
    """Walks the values of a stream. `number` is that of the last row yielded."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        self.number = 0
        self._head: str | None = None  # how the first row begins: { "key"

    def values(self) -> Iterator[Raw]:
        """Consecutive values."""
        while self.peek():
            row = self._row(_VALUES)
            self.settle()
            self.number += 1
            yield self.number, row

    def items(self) -> Iterator[Raw]:
        """Rows of the array that starts here, to its end."""
        self.take()
        row: Any = None
        comma = True
        while (mark := self.peek()) != "]":
            if comma:
                yield from self._plain_rows()
                mark = self.peek()
            if not mark:
                raise _Broken(self.place(msg("the array is not closed")))
            if mark == "," and not comma:
                self.take()
                comma = True
                continue
            if not comma and mark in "{[" and not isinstance(row, Problem):
                yield (
                    self.number + 1,
                    Problem(msg("the comma between it and the previous row is missing; both were read.")),
                )
            row = self._row(_ITEMS)
            self.settle()
            self.number += 1
            yield self.number, row
            comma = False
        if comma and self.number:
            yield self.number + 1, Problem(msg("there is a trailing comma at the end of the array."))
        self.take()

    def _plain_rows(self) -> Iterator[Raw]:
        """The rows of an array that are buffered with their comma and valid: nearly all of them, so this is fast."""
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

    def members(self, keys: Collection[str]) -> Iterator[Raw]:
        """Rows of the arrays under those keys of the object that starts here, to its end."""
        for key in self.names():
            if key in keys and self.peek() == "[":
                yield from self.items()
            else:
                self.skip()

    def names(self) -> Iterator[str]:
        """Keys of the object that starts here, to its end; the caller moves past each value before it takes the next key."""
        if self.peek() != "{":
            raise _Broken(self.place(msg("an object is expected")))
        self.take()
        while (mark := self.peek()) != "}":
            if mark == ",":
                self.take()
                continue
            if mark != '"':
                raise _Broken(self.place(msg("a key is expected") if mark else msg("the object is not closed")))
            try:
                key = self._parsed()
            except (JSONDecodeError, ForeignTextError, RowRejected) as error:
                raise _Broken(self.place(_reason(error))) from None
            if self.peek() != ":":
                raise _Broken(self.place(msg("a colon is expected")))
            self.take()
            yield str(key)
        self.take()

    def skip(self, depth: int = 0) -> None:
        """Move past the value that starts here, or to the end of what has been open `depth` times."""
        self.peek()
        finder = _End(depth, _ITEMS.end)
        finder.at = self.at
        while not finder.found(self.text, len(self.text)):
            if self.ended:
                raise _Broken(self.place(msg("a value is not closed")))
            self.at = finder.at
            self.more()
            finder.at = 0
        self.at = finder.at

    def _row(self, among: _Among) -> Any | Problem:
        """The row that starts here, or why there is none; moves past it."""
        try:
            return self._parsed(is_row=True)
        except JSONDecodeError as error:
            place = self.place(_reason(error), error.pos)
            self._leave(error.pos, among, place)
            return Problem(msg("it is not JSON ({place}).", place=place))
        except (ForeignTextError, RowRejected) as error:
            self._leave(None, among, self.place(_reason(error)))
            return rows.problem(error)

    def _parsed(self, *, is_row: bool = False) -> Any:
        """The value that starts here; moves past it. Raises JSONDecodeError, ForeignTextError, RowRejected, without moving."""
        while True:
            try:
                value, end = parse_json_at(self.text, self.at)
            except JSONDecodeError as error:
                if self.ended or not _goes_on(error, len(self.text)):
                    raise
            else:
                if end < len(self.text) or self.ended:  # otherwise a number may continue
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
        """How the first row starts, if it is an object: with its first key. Called at the start of a row."""
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

    def _leave(self, wrong: int | None, among: _Among, reason: str) -> None:
        """Move to the end of the malformed row that starts here. Raises _Broken with the message if there is none.

        After a syntax error its brackets may mislead; a start like the first row's then takes precedence.
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
                raise _Broken(reason)
            if stop == len(self.text) and not found:
                if self.ended:
                    raise _Broken(reason)
                sought = max(sought, stop - len(head))  # a beginning may lie across the end
                self.at = sought if lost else min(sought, end.at)
                end.at, sought = end.at - self.at, sought - self.at
                self.more()
            window = min(2 * window, CHUNK)


class _End:
    """Finds the end of a value by brackets and quotes alone, whatever is between them, window by window."""

    def __init__(self, depth: int, end_of_plain: re.Pattern[str]) -> None:
        self.at, self._depth, self._plain = 0, depth, end_of_plain
        self._quoted = self._begun = False

    def found(self, text: str, stop: int) -> bool:
        """Whether the end, to which `at` moves, comes before a position; otherwise the search continues from `at`."""
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
    """Whether an error may only mean that the text ends inside the value."""
    return error.msg.startswith("Unterminated") or error.pos >= length - _NEAR_THE_END


def _reason(error: JSONDecodeError | ForeignTextError | RowRejected) -> str:
    return quoted(error.msg) if isinstance(error, JSONDecodeError) else without_full_stop(message_of(error))
