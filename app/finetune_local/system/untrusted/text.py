"""JSON and TOML that the app did not write, or that a disk may have damaged, read within limits.

Python's readers raise four kinds of error for bad text (JSONDecodeError, UnicodeDecodeError, ValueError for a number of more
than 4,300 digits, RecursionError), and accept text that breaks later code: 900 levels of nesting, integers that no float holds. Here
all of these are one error, ForeignTextError, whose message is the end of a sentence: "{path}: {error}. Copy it again."
tests/repo/test_foreign_text.py forbids json.load(s) and tomllib.load(s) anywhere else.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

from finetune_local.system.messages import message_of, msg

MOST_BYTES = 64 * 2**20
"""Largest settings file that is read. The largest known good one is a tokenizer.json of 35 MB."""

MOST_DEPTH = 64
"""Deepest nesting accepted; known files stay under 20."""

MOST_DIGITS = 300
"""Longest integer accepted: a float holds 10^308."""

MOST_PARTS = 5_000_000
"""Most brackets and commas outside strings; each may cost 100 bytes of memory. A 35 MB tokenizer.json has 2 million."""

_STRINGS_APART = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|$)|[^"]++', re.DOTALL)  # possessive, so that it never backtracks
_KINDS = {
    dict: msg("an object"),
    list: msg("a list"),
    str: msg("a text"),
    bool: msg("true or false"),
    int: msg("a number"),
    float: msg("a number"),
}


class ForeignTextError(ValueError):
    """The text cannot be used. The message is the end of a sentence without a full stop: what is wrong, and where."""


def parse_json(text: str | bytes, depth: int = MOST_DEPTH) -> Any:
    """The value of a JSON text; bytes are UTF-8, with or without a byte-order mark. Raises ForeignTextError.

    NaN and Infinity are accepted, as in Python; callers that need finite numbers must check.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        check_parts(decoded)
        value = _DECODER.decode(decoded)
    except json.JSONDecodeError as error:
        raise ForeignTextError(
            msg(
                "it is not JSON (line {line}, column {column}: {what})",
                line=error.lineno,
                column=error.colno,
                what=_one_line(error.msg),
            )
        ) from None
    except UnicodeDecodeError as error:
        raise ForeignTextError(msg("it is not UTF-8 text (byte {byte})", byte=error.start)) from None
    except RecursionError:
        raise ForeignTextError(msg("it is nested more than {depth} levels deep", depth=depth)) from None
    _check_depth(value, decoded, 0, len(decoded), depth)
    return value


def parse_json_at(text: str, start: int, depth: int = MOST_DEPTH) -> tuple[Any, int]:
    """The JSON value that starts at an offset, and where it ends, for consecutive values.

    Raises json.JSONDecodeError if the value is malformed or continues beyond the text, whose length check_parts() should have checked,
    and ForeignTextError if it is complete but cannot be used.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError:
        raise ForeignTextError(msg("it is nested more than {depth} levels deep", depth=depth)) from None
    _check_depth(value, text, start, end, depth)
    return value, end


def check_parts(text: str, start: int = 0) -> None:
    """Raise ForeignTextError if a JSON text has too many parts for memory."""
    if len(text) - start <= MOST_PARTS or sum(text.count(mark, start) for mark in "[{,") <= MOST_PARTS:
        return  # this count includes marks inside strings, so a large number is not conclusive
    parts = 0
    for match in _STRINGS_APART.finditer(text, start):
        if match[0][0] != '"':
            parts += sum(match[0].count(mark) for mark in "[{,")
            if parts > MOST_PARTS:
                raise ForeignTextError(msg("it has more than {number} values", number=f"{MOST_PARTS:,}"))


def parse_json_object(text: str | bytes, depth: int = MOST_DEPTH) -> dict[str, Any]:
    """As parse_json(), for an object ({...}). Raises ForeignTextError."""
    value = parse_json(text, depth)
    if not isinstance(value, dict):
        raise ForeignTextError(msg("a JSON object is expected, not {what}", what=kind_of(value)))
    return value


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The value in a file. Raises ForeignTextError, and OSError if the file cannot be read."""
    return parse_json(read_bounded(path, most_bytes))


def read_json_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The object in a file. Raises ForeignTextError, and OSError if the file cannot be read."""
    return parse_json_object(read_bounded(path, most_bytes))


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """The tables of a TOML text. Raises ForeignTextError."""
    try:
        values = tomllib.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ForeignTextError(msg("it is not UTF-8 text (byte {byte})", byte=error.start)) from None
    except RecursionError:
        raise ForeignTextError(msg("it is nested more than {depth} levels deep", depth=MOST_DEPTH)) from None
    except ValueError as error:  # TOMLDecodeError is one; so is a number of too many digits
        raise ForeignTextError(msg("it is not TOML ({what})", what=_one_line(message_of(error)))) from None
    if deeper_than(values, MOST_DEPTH):
        raise ForeignTextError(msg("it is nested more than {depth} levels deep", depth=MOST_DEPTH))
    return values


def read_bounded(path: Path, most_bytes: int = MOST_BYTES, *, pipes: bool = False) -> bytes:
    """The bytes of a file of limited size. Raises ForeignTextError if it is larger or no regular file, and OSError.

    `pipes` allows a pipe, for paths from the command line such as <(a command).
    """
    with path.open("rb") if pipes else open_file(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ForeignTextError(
            msg("it is larger than {size} MB, too large for such a file", size=f"{most_bytes / 1e6:.0f}")
        )
    return content


def open_file(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a regular file. Pipes, sockets and devices could block forever and are refused, as are links unless `follow`.

    Raises ForeignTextError, and OSError.
    """
    flags = os.O_RDONLY | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    if not follow and path.is_symlink():
        raise ForeignTextError(msg("it is a link to another file"))
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENODEV):  # a socket, or a missing device
            raise ForeignTextError(msg("it is not a readable file")) from None
        if error.errno == errno.ELOOP and not follow:
            raise ForeignTextError(msg("it is a link to another file")) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise ForeignTextError(msg("it is not a file, but a pipe or a device"))


def deeper_than(value: Any, depth: int) -> bool:
    """Whether a value nests lists and objects more than `depth` deep; not recursive."""
    layer = [value]
    for _ in range(depth):
        layer = [inner for outer in layer for inner in _inside(outer) if isinstance(inner, (dict, list))]
        if not layer:
            return False
    return isinstance(value, (dict, list))


def is_text(value: object) -> bool:
    r"""Whether a value is a string that UTF-8 can encode; JSON's \ud800 makes one that it cannot."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode("utf-8"))  # many times as fast as a search for such characters
    except UnicodeEncodeError:
        return False


def kind_of(value: object) -> str:
    """A JSON value's type, in words."""
    if value is None:
        return "null"
    return _KINDS.get(type(value), type(value).__name__)


def _check_depth(value: Any, text: str, start: int, end: int, depth: int) -> None:
    # Counting brackets is fast and decides nearly every text; brackets inside strings require a closer look.
    if text.count("[", start, end) + text.count("{", start, end) > depth and deeper_than(value, depth):
        raise ForeignTextError(msg("it is nested more than {depth} levels deep", depth=depth))


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ForeignTextError(msg("it contains a number of {count} digits", count=len(digits)))
    return int(digits)


def _one_line(message: str) -> str:
    """A library's message, short and on one line."""
    return " ".join(message.split())[:200]


_DECODER = json.JSONDecoder(parse_int=_integer)
