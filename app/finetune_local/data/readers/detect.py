"""Detect a file's container (JSON Lines, JSON array, CSV, text) and encoding from its head.

Raises a sentence for files that cannot be training data: missing, empty, a folder, binary, zero bytes.
"""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from finetune_local.data.readers.chat_text import begins
from finetune_local.data.readers.json_rows import array_of_objects
from finetune_local.system.errors import DataError
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.untrusted.text import ForeignTextError, parse_json

Container = Literal["jsonl", "json", "csv", "text"]

HEAD_BYTES = 1 << 20
ENCODING_BYTES = 1 << 24  # how far a byte that is not UTF-8 is looked for
WRAPPERS = ("data", "rows", "train", "examples", "items", "records", "samples", "entries", "instances", "dataset")
"""Keys of a JSON object that may contain the array of rows."""

_TELEGRAM = re.compile(
    r'\s*\{[^\[\]{}]{0,2000}"messages"\s*:\s*\[\s*\{\s*"id"\s*:\s*-?\d+\s*,\s*"type"\s*:\s*"(message|service)"\s*,\s*"date"'
)
"""A chat exported by Telegram as JSON: one object with its messages in one array."""

_CONVERT = msg("Save it as JSON Lines or CSV first")
_MAGIC = {
    b"PK\x03\x04": msg("a ZIP archive or an Excel workbook. Unpack it, or save it in Excel as CSV (UTF-8) first"),
    b"PAR1": msg(
        'a Parquet file. {convert}: python -c "import pandas; '
        "pandas.read_parquet('FILE').to_json('out.jsonl', orient='records', lines=True, force_ascii=False)\"",
        convert=_CONVERT,
    ),
    b"\x1f\x8b": msg("compressed with gzip. Unpack it first: gunzip FILE"),
    b"BZh": msg("compressed with bzip2. Unpack it first"),
    b"\xfd7zXZ": msg("compressed with xz. Unpack it first"),
    b"\x28\xb5\x2f\xfd": msg("compressed with zstd. Unpack it first"),
    b"ARROW1": msg("an Arrow file. {convert}", convert=_CONVERT),
    b"SQLite format 3": msg("an SQLite database. {convert}", convert=_CONVERT),
    b"\xd0\xcf\x11\xe0": msg("an old Excel or Word file. {convert}", convert=_CONVERT),
    b"%PDF": msg("a PDF. Extract its text first"),
    b"\x93NUMPY": msg("a NumPy array. {convert}", convert=_CONVERT),
    b"GGUF": msg("a GGUF model, not data"),
}
_IN_PLACE_OF_DATA = {
    b"<!doctype html": msg(
        "a web page, not the file it links to. Download the file itself (on a hub: with its download button)"
    ),
    b"<html": msg(
        "a web page, not the file it links to. Download the file itself (on a hub: with its download button)"
    ),
    b"version https://git-lfs.": msg("a Git LFS pointer; the data itself was not downloaded. Run: git lfs pull"),
}
"""First words of texts often saved under a data file's name. In a text or .html file they are text."""
_BOMS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class FileKind:
    """A file's container, its encoding as Python names it, its size in bytes, and for JSON where the rows are.

    `array` is the key of the array of rows, "" if the file is that array, None if the values follow one another.
    """

    container: Container
    encoding: str
    size: int
    array: str | None = None


def examine(path: Path, shown: str) -> FileKind:
    """Inspect a file's head. Raises DataError; `shown` is the file as the user named it."""
    try:
        if path.is_dir():
            raise DataError(msg("{shown}: this is a folder. Choose one or more files in it.", shown=shown))
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(HEAD_BYTES)
            _refuse_binary(head, shown)
            encoding = _encoding(head, file, shown)
    except FileNotFoundError:
        raise DataError(msg("{shown}: file not found. Check the spelling and the folder.", shown=shown)) from None
    except OSError as error:
        raise DataError(msg("{shown}: cannot be read ({error}).", shown=shown, error=system_reason(error))) from None
    # A sample may end within a character, which is no reason to refuse the file.
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head, len(head) == size)
    if not text.strip().strip("\ufeff \t\r\n"):
        raise DataError(msg("{shown}: the file is empty. Put one training example on each line.", shown=shown))
    container, array = _container(text.lstrip("\ufeff"), path, shown, whole=len(head) == size)
    return FileKind(container, encoding, size, array)


def _refuse_binary(head: bytes, shown: str) -> None:
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(msg("{shown}: this is {what}.", shown=shown, what=what.replace("FILE", shown)))
    if head and not head.strip(b"\0"):
        raise DataError(
            msg(
                "{shown}: the file contains only zero bytes; it was not written completely (full disk or crash). "
                "Create or copy it again.",
                shown=shown,
            )
        )


def _encoding(head: bytes, file: BinaryIO, shown: str) -> str:
    for mark, name in _BOMS:
        if head.startswith(mark):
            return name
    if wide := _wide(head):
        return wide
    sample = head
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)
        read = len(head)
        while read < ENCODING_BYTES and (sample := file.read(HEAD_BYTES)):
            decoder.decode(sample)
            read += len(sample)
    except UnicodeDecodeError:
        return _legacy(sample, shown)
    return "utf-8"


def _wide(head: bytes) -> str | None:
    """UTF-16 without a byte-order mark: nearly every other byte of Latin text or JSON syntax is zero."""
    sample = head[: 1 << 16]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    half = max(1, len(sample) // 2)
    if odd > 0.2 * half and even < 0.02 * half:
        return "utf-16-le"
    if even > 0.2 * half and odd < 0.02 * half:
        return "utf-16-be"
    return None


def _legacy(sample: bytes, shown: str) -> str:
    """GB18030 or Windows-1252, whichever the bytes suggest; others are refused, not guessed.

    A merely corrupted byte leaves the rest valid UTF-8: the file is UTF-8 then, and the bad rows are rejected.
    """
    repaired = sample.decode("utf-8", "replace")
    broken = repaired.count("\ufffd")
    wide = sum(not c.isascii() for c in repaired)
    if broken <= 0.05 * wide or (broken <= 3 and wide - broken > broken):
        return "utf-8"
    foreign = [c for c in codecs.getincrementaldecoder("gb18030")("replace").decode(sample) if not c.isascii()]
    # Common Chinese text stays within GB 2312; other encodings read as GB18030 scatter over rare characters.
    if foreign and sum(_in_gb2312(c) for c in foreign) >= 0.9 * len(foreign):
        return "gb18030"
    high = sum(byte >= 0x80 for byte in sample)
    undefined = sum(sample.count(bytes([b])) for b in (0x81, 0x8D, 0x8F, 0x90, 0x9D))
    if high <= 0.3 * len(sample) and not undefined:
        return "cp1252"
    if broken == wide and wide <= 3:
        return "utf-8"
    raise DataError(
        msg("{shown}: the text is not UTF-8, and its encoding was not recognised. Save it as UTF-8.", shown=shown)
    )


def _in_gb2312(character: str) -> bool:
    try:
        character.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def _container(text: str, path: Path, shown: str, *, whole: bool) -> tuple[Container, str | None]:
    suffix = path.suffix.lower()
    start = text.lstrip()[:1]
    first = text.rfind("\n", 0, len(text) - len(text.lstrip())) + 1  # blank lines before it may be any number
    lines = [line for line in text[first:].split("\n", 65)[:64] if line.strip()]
    if begins(text):  # a chat as WhatsApp writes it: [12/31/23, 10:15] Alice: hi
        return "text", None
    if start in "[{" and suffix not in (".csv", ".tsv", ".txt", ".md"):
        if suffix in (".jsonl", ".ndjson") and lines[0].strip() not in ("{", "[", "[{"):
            return "jsonl", None
        return _json(text, start, lines, whole=whole)
    if suffix in (".csv", ".tsv", ".json", ".jsonl", ".ndjson"):
        begun = text.lstrip()[:40].lower().encode("ascii", "replace")
        for beginning, what in _IN_PLACE_OF_DATA.items():
            if begun.startswith(beginning):
                raise DataError(msg("{shown}: this is {what}.", shown=shown, what=what))
    if suffix in (".csv", ".tsv"):
        return "csv", None
    if suffix in (".jsonl", ".ndjson"):
        return "jsonl", None
    if suffix == ".json":
        raise DataError(
            msg(
                "{shown}: this is not JSON; it begins with {beginning}. Expected [ or {.",
                shown=shown,
                beginning=repr(text.lstrip()[:40]),
            )
        )
    if suffix not in (".txt", ".md") and _looks_like_csv(lines[0]):
        return "csv", None
    return "text", None


def _json(text: str, start: str, lines: list[str], *, whole: bool) -> tuple[Container, str | None]:
    if start == "[":
        several = len(lines) > 1 and all(_parses(line, list) for line in lines[:2])
        return ("jsonl", None) if several else ("json", "")
    names = "|".join(WRAPPERS)
    if match := re.match(rf'\s*\{{\s*"({names})"\s*:\s*\[', text, re.IGNORECASE):
        return "json", match.group(1)
    if _TELEGRAM.match(text):
        return "json", "messages"
    if len(lines) > 1 and any(_parses(line, dict) for line in lines):
        return "jsonl", None
    head = io.BytesIO(text.encode("utf-8", "replace"))
    if (key := array_of_objects(head, WRAPPERS)) is not None:
        return "json", key
    if len(lines) == 1 and (not whole or _parses(lines[0], dict)):
        return "jsonl", None
    return "json", None


def _parses(line: str, kind: type) -> bool:
    try:
        return isinstance(parse_json(line), kind)
    except ForeignTextError:
        return False


def _looks_like_csv(header: str) -> bool:
    known = {"prompt", "completion", "instruction", "output", "question", "answer", "response", "input", "messages"}
    return any(
        len(names) > 1 and len(known & set(names)) > 1
        for delimiter in ",;\t|"
        if (names := [n.strip(' "\r').lower() for n in header.split(delimiter)])
    )
