"""Files as raw rows, one at a time: JSON Lines, CSV, text (json_rows.py reads other JSON). Knows no chat format.

Each reader takes a UTF-8 byte stream and yields (line, value) or (line, Problem), with one row in memory.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from finetune_local.data.conversation import RowRejected
from finetune_local.system.errors import DataError
from finetune_local.system.messages import Message, message_of, msg
from finetune_local.system.untrusted.text import MOST_PARTS, ForeignTextError, check_parts, parse_json_at

MAX_ROW_BYTES = 64 << 20
PART_CHARACTERS = 8_000
"""Length of the parts that a long text without documents is split into, so that some can be used for validation."""

NOT_UTF8 = msg("it is not valid UTF-8. Save the file as UTF-8.")

MOST_KEYS = 10_000
"""Keys of a row, or columns of a file."""

_SKIP = 1 << 20

_BAD = "\udcff"
OPTIONAL = ("system", "history", "tools", "input", "label")
"""Columns in which an empty cell means that the row has none."""


@dataclass(frozen=True)
class Problem:
    """Why a row could not be read."""

    reason: Message


Raw = tuple[int, Any | Problem]


def _as_bad_byte(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be decoded by an invalid UTF-8 byte, so that only its row is rejected."""
    if isinstance(error, UnicodeDecodeError):
        return _BAD, error.end
    raise error


codecs.register_error("finetune_local.bad_byte", _as_bad_byte)


class Transcoder(io.RawIOBase):
    """A stream in any encoding as UTF-8 bytes without a byte-order mark; undecodable input stays invalid."""

    def __init__(self, source: BinaryIO, encoding: str) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(encoding)("finetune_local.bad_byte")
        self._pending = b""

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill part of the buffer; returns 0 at the end."""
        while not self._pending:
            raw = self._source.read(1 << 16)
            text = self._decoder.decode(raw, final=not raw).lstrip("\ufeff")
            self._pending = text.encode("utf-8", "surrogateescape")
            if not raw:
                break
        taken = self._pending[: len(buffer)]
        buffer[: len(taken)] = taken
        self._pending = self._pending[len(taken) :]
        return len(taken)


def utf8(source: BinaryIO, encoding: str) -> BinaryIO:
    """The stream as UTF-8 bytes; invalid bytes stay invalid, so that only their rows are rejected."""
    if encoding == "utf-8-sig":
        source.seek(len(codecs.BOM_UTF8))
    if encoding in ("utf-8", "utf-8-sig"):
        return source
    return cast(BinaryIO, io.BufferedReader(Transcoder(source, encoding), 1 << 16))


def lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | Problem]]:
    """Numbered lines. A line over MAX_ROW_BYTES is skipped without being buffered."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            while not line.endswith(b"\n") and (line := stream.readline(_SKIP)):
                pass
            yield number, Problem(too_long())
            continue
        yield number, line


def jsonl(stream: BinaryIO) -> Iterator[Raw]:
    """One JSON value per line; blank lines are skipped."""
    for number, line in lines(stream):
        if isinstance(line, Problem):
            yield number, line
            continue
        text = line.strip(b" \t\r\n")
        if not text:
            continue
        yield number, _value(text, whole=line.endswith(b"\n"))


def too_long() -> Message:
    """The reason for a row over the limit."""
    return msg("it is longer than {size} MB; split it.", size=MAX_ROW_BYTES >> 20)


def problem(error: ForeignTextError | RowRejected) -> Problem:
    """An error's message about a row."""
    return Problem(
        msg("it cannot be used: {error}.", error=error) if isinstance(error, ForeignTextError) else error.message
    )


def _value(line: bytes, *, whole: bool) -> Any | Problem:
    """A line's JSON value; `whole` says that the line is complete."""
    try:
        text = line.decode("utf-8")
        check_parts(text)
        value, end = parse_json_at(text, 0)
    except UnicodeDecodeError:
        return Problem(NOT_UTF8)
    except ForeignTextError as error:
        return problem(error)
    except json.JSONDecodeError as error:
        if not line.strip(b"\0"):
            return Problem(msg("it contains only zero bytes; the file is damaged."))
        if not whole:
            return Problem(msg("the last line is incomplete: the file was not written completely."))
        return Problem(msg("it is not JSON: {error} at column {column}.", error=error.msg, column=error.colno))
    return value if end == len(text) else Problem(msg("it is not JSON: Extra data at column {column}.", column=end + 1))


def csv_rows(stream: BinaryIO, shown: str) -> Iterator[Raw]:
    """Rows of a CSV file with a header; the number is that of a row's first line."""
    csv.field_size_limit(MAX_ROW_BYTES)
    text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
    try:
        number, header_line = 1, text.readline(_SKIP)
        while header_line and not header_line.strip(" \r\n"):
            number, header_line = number + 1, text.readline(_SKIP)
        names = _header(header_line, shown)
        found = _CsvLines(text, _delimiter(header_line), number)
        while True:
            # strict: else a quote that is never closed would swallow the rest of the file into one cell, in silence.
            reader = csv.reader(found, delimiter=found.delimiter, strict=True)
            start = found.row()
            try:
                for cells in reader:
                    if cells:
                        yield start, _csv_row(names, cells)
                    start = found.row()
            except csv.Error as error:
                yield start, Problem(_csv_reason(message_of(error)))
            except RowRejected as error:
                yield start, problem(error)
            else:
                return
    finally:
        text.detach()


class _CsvLines:
    """Lines for csv.reader, which has no size limit: raises RowRejected after the line that makes a row too large."""

    def __init__(self, text: io.TextIOWrapper, delimiter: str, number: int) -> None:
        """`number` lines were read before, the header last."""
        self.delimiter = delimiter
        self._text, self._number = text, number
        self._size = self._cells = 0

    def row(self) -> int:
        """Start a row; returns the number of its first line."""
        self._size = self._cells = 0
        return self._number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self._number += 1
        self._size += len(line)
        self._cells += line.count(self.delimiter)
        if self._size > MAX_ROW_BYTES:
            while not line.endswith(("\n", "\r")) and (line := self._text.readline(_SKIP)):
                pass
            raise RowRejected(too_long())
        if self._cells > MOST_PARTS:
            raise RowRejected(msg("it has more than {number} cells.", number=f"{MOST_PARTS:,}"))
        return line


def text_parts(stream: BinaryIO, *, by_line: bool) -> Iterator[Raw]:
    """Documents of a text file as {"text"} rows: one per line, or parts of a long text split at paragraphs."""
    start, size, part, started = 1, 0, list[str](), False
    for number, line in lines(stream):
        try:
            text = _decoded(line)
        except RowRejected as error:
            yield number, Problem(message_of(error))
            continue
        if by_line:
            if text.strip():
                yield number, {"text": text.strip("\r\n")}
            continue
        if size > PART_CHARACTERS:
            yield start, {"text": "".join(part), "continues": True}
            start, size, part = number, 0, []
        if not part and not started and not text.strip():
            start = number + 1  # blank lines before the first text
            continue
        started = True
        part.append(text)
        size += len(text)
        if not text.strip() and size > PART_CHARACTERS // 2:
            yield start, {"text": "".join(part), "continues": True}
            start, size, part = number + 1, 0, []
    if "".join(part).strip():
        yield start, {"text": "".join(part).rstrip("\r\n")}


def one_document_per_line(sample: str) -> bool:
    """Whether each line is a document: long lines, no blank lines between paragraphs."""
    found = sample.split("\n")[:-1] if sample.count("\n") > 1 else sample.split("\n")
    found = found[:-1] if len(found) > 1 and not found[-1].strip() else found
    lengths = sorted(len(line) for line in found)
    return lengths[0] > 0 and lengths[len(lengths) // 2] >= 500 and len(lengths) > 1


def _decoded(line: bytes | Problem) -> str:
    if isinstance(line, Problem):
        raise RowRejected(line.reason)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise RowRejected(NOT_UTF8) from None


def _header(line: str, shown: str) -> list[str]:
    if len(line) >= _SKIP:
        raise DataError(
            msg(
                "{shown}: its first line is longer than {size} MB, too long for the header of a CSV file.",
                shown=shown,
                size=_SKIP >> 20,
            )
        )
    names = next(csv.reader([line], delimiter=_delimiter(line)), [])
    names = [name.strip().lstrip("\ufeff") for name in names]
    if len(names) > MOST_KEYS:
        raise DataError(
            msg(
                "{shown}: the header has {count} columns; at most {most} are supported.",
                shown=shown,
                count=f"{len(names):,}",
                most=f"{MOST_KEYS:,}",
            )
        )
    if duplicate := next((n for n, times in Counter(names).items() if n and times > 1), None):
        raise DataError(
            msg("{shown}: the header has two columns '{name}'. Rename or remove one.", shown=shown, name=duplicate)
        )
    return names


def _delimiter(header: str) -> str:
    """The most frequent unquoted delimiter of the header line; a comma if in doubt."""
    bare = "".join(part for i, part in enumerate(header.split('"')) if i % 2 == 0)
    return max(",;\t|", key=lambda d: (bare.count(d), d == ","))


def _csv_row(names: list[str], cells: list[str]) -> dict[str, str] | Problem:
    if len(cells) != len(names):
        return Problem(
            msg(
                "its number of columns is {number}, but the header has {columns} ({names}). Put double quotes around "
                "texts that contain the delimiter.",
                number=len(cells),
                columns=len(names),
                names=", ".join(names),
            )
        )
    if any(not cell.isascii() and any("\udc80" <= c <= "\udcff" for c in cell) for cell in cells):
        return Problem(NOT_UTF8)
    return {name: cell for name, cell in zip(names, cells, strict=True) if name and (cell or name not in OPTIONAL)}


def _csv_reason(error: str) -> Message:
    if "unexpected end" in error:
        return msg("a double quote is never closed, so the rest of the file could not be read.")
    if "field limit" in error or "field larger" in error:
        return msg("a cell is longer than {size} MB; is a double quote never closed?", size=MAX_ROW_BYTES >> 20)
    return msg("it is not CSV: {error}.", error=error)
