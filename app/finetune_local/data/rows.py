"""Files as raw rows, one at a time, whatever holds them: JSON Lines, JSON, CSV, text. Knows no chat format.

Each reader takes a stream of UTF-8 bytes and yields (line, value) or (line, Problem); memory holds one row.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from finetune_local.data.conversation import RowRejected
from finetune_local.errors import DataError

MAX_ROW_BYTES = 64 << 20
PART_CHARACTERS = 8_000
"""Length at which a long text without documents of its own is cut, so that parts of it can be held out."""

_SKIP = 1 << 20


@dataclass(frozen=True)
class Problem:
    """Why a row could not even be read."""

    reason: str


Raw = tuple[int, Any | Problem]


class Transcoder(io.RawIOBase):
    """A stream in any encoding as UTF-8 bytes, without a byte order mark. Raises DataError where it cannot be decoded."""

    def __init__(self, source: BinaryIO, encoding: str, shown: str) -> None:
        self._source, self._encoding, self._shown = source, encoding, shown
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._pending = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of the buffer; 0 at the end."""
        while not self._pending:
            raw = self._source.read(1 << 16)
            try:
                self._pending = self._decoder.decode(raw, final=not raw).lstrip("\ufeff").encode("utf-8")
            except UnicodeError as error:
                raise DataError(
                    f"{self._shown}: it looks like {self._encoding}, but cannot be read as that near byte "
                    f"{self._source.tell()} ({error.__class__.__name__}). Save it as UTF-8."
                ) from None
            if not raw:
                break
        taken = self._pending[: len(buffer)]
        buffer[: len(taken)] = taken
        self._pending = self._pending[len(taken) :]
        return len(taken)


def utf8(source: BinaryIO, encoding: str, shown: str) -> BinaryIO:
    """The stream as UTF-8 bytes. UTF-8 itself passes untouched, so that a bad byte costs its row and not the file."""
    if encoding == "utf-8-sig":
        source.seek(len(codecs.BOM_UTF8))
    if encoding in ("utf-8", "utf-8-sig"):
        return source
    return cast(BinaryIO, io.BufferedReader(Transcoder(source, encoding, shown), 1 << 16))


def lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | Problem]]:
    """Lines with their numbers. One over MAX_ROW_BYTES is skipped without being held."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            while not line.endswith(b"\n") and (line := stream.readline(_SKIP)):
                pass
            yield number, Problem(f"it is longer than {MAX_ROW_BYTES >> 20} MB; split it.")
            continue
        yield number, line


def jsonl(stream: BinaryIO) -> Iterator[Raw]:
    """One JSON value per line; blank lines are passed over."""
    for number, line in lines(stream):
        if isinstance(line, Problem):
            yield number, line
            continue
        text = line.strip(b" \t\r\n")
        if not text:
            continue
        try:
            yield number, json.loads(text.decode("utf-8"))
        except UnicodeDecodeError:
            yield number, Problem("it is not valid UTF-8. Save the file as UTF-8.")
        except RecursionError:
            yield number, Problem("it is nested too deeply to be read.")
        except json.JSONDecodeError as error:
            if not text.strip(b"\0"):
                yield number, Problem("it holds only zero bytes; the file was damaged.")
            elif not line.endswith(b"\n"):
                yield number, Problem("the last line breaks off: the file was not written to its end.")
            else:
                yield number, Problem(f"it is not JSON: {error.msg} at column {error.colno}.")


def json_items(stream: BinaryIO, prefix: str) -> Iterator[Raw]:
    """The items of a JSON array, or (prefix "") top-level values one after the other; numbered from 1."""
    import ijson

    number = 0
    try:
        # Values one after the other are ijson's multiple_values; in an array nothing may follow the end.
        for value in ijson.items(stream, prefix, use_float=True, multiple_values=not prefix):
            number += 1
            yield number, value
    except (ijson.JSONError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split("\n")[0].split())
        yield number + 1, Problem(f"the JSON breaks off here ({said}); nothing after it could be read.")


def csv_rows(stream: BinaryIO, shown: str) -> Iterator[Raw]:
    """Rows of a CSV file with a header line. The number is that of the line a row begins on."""
    csv.field_size_limit(MAX_ROW_BYTES)
    text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
    try:
        header_line = text.readline(_SKIP)
        names = _header(header_line, shown)
        # strict: else a quote that is never closed would swallow the rest of the file into one cell, in silence.
        reader = csv.reader(text, delimiter=_delimiter(header_line), strict=True)
        while True:
            start = reader.line_num + 2  # the header was read before
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield start, Problem(_csv_reason(str(error)))
                continue
            if cells:
                yield start, _csv_row(names, cells)
    finally:
        text.detach()


def text_parts(stream: BinaryIO, *, by_line: bool) -> Iterator[Raw]:
    """Documents of a text file as {"text"} rows: a line each, or parts of one long text cut at its paragraphs."""
    start, size, part, started = 1, 0, list[str](), False
    for number, line in lines(stream):
        try:
            text = _decoded(line)
        except RowRejected as error:
            yield number, Problem(str(error))
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
    """Whether the lines of a text file are documents: long, and with no blank lines between paragraphs."""
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
        raise RowRejected("it is not valid UTF-8. Save the file as UTF-8.") from None


def _header(line: str, shown: str) -> list[str]:
    names = next(csv.reader([line], delimiter=_delimiter(line)), [])
    names = [name.strip().lstrip("\ufeff") for name in names]
    if duplicate := next((n for i, n in enumerate(names) if n and n in names[:i]), None):
        raise DataError(f"{shown}: the header has two columns '{duplicate}'. Rename or remove one.")
    return names


def _delimiter(header: str) -> str:
    """The delimiter that stands most often outside quotes in the header line; the comma in doubt."""
    bare = "".join(part for i, part in enumerate(header.split('"')) if i % 2 == 0)
    return max(",;\t|", key=lambda d: (bare.count(d), d == ","))


def _csv_row(names: list[str], cells: list[str]) -> dict[str, str] | Problem:
    if len(cells) != len(names):
        return Problem(
            f"its number of columns is {len(cells)}, but the header has {len(names)} ({', '.join(names)}). "
            "Put double quotes around texts that hold the delimiter."
        )
    if any(not cell.isascii() and any("\udc80" <= c <= "\udcff" for c in cell) for cell in cells):
        return Problem("it is not valid UTF-8. Save the file as UTF-8.")
    return {name: cell for name, cell in zip(names, cells, strict=True) if name and (cell or name not in OPTIONAL)}


OPTIONAL = ("system", "history", "tools", "input", "label")
"""Columns whose empty cell means that the row has none."""


def _csv_reason(said: str) -> str:
    if "unexpected end" in said:
        return "a double quote is opened and never closed, so the rest of the file could not be read."
    if "field limit" in said or "field larger" in said:
        return f"a cell is longer than {MAX_ROW_BYTES >> 20} MB; is a double quote never closed?"
    return f"it is not CSV: {said}."
