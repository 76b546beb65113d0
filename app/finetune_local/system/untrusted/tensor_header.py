"""The header of a safetensors file, read within limits: which tensors it holds, and where.

Enforces the format's rules, which not every reader does: unique names, contiguous offsets without overlaps, up to the last byte
(https://github.com/huggingface/safetensors#format: 8 bytes little-endian length, a JSON header, the data).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, is_text, parse_json_object

BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
_HALVES = {"F4": 8, "F6_E2M3": 12, "F6_E3M2": 12}
"""Sub-byte dtypes, in sixteenths of a byte per number."""

_LARGEST_HEADER = 100_000_000  # the format's own limit
_MOST_TENSORS = 500_000  # the largest known model has some 200,000, over all its files
_MOST_DIMENSIONS = 8  # known weights have up to five
_LARGEST = 2**62  # bytes


class LfsPointer(ForeignTextError):
    """A Git LFS pointer instead of the file."""


@dataclass(frozen=True)
class Stored:
    """A tensor's location: its file, its byte range, its shape, and its dtype as safetensors spells it."""

    file: Path
    begin: int
    end: int
    shape: tuple[int, ...]
    dtype: str


def tensors_of(path: Path) -> dict[str, Stored]:
    """A file's tensors by name. Raises ForeignTextError if it is truncated, damaged or no safetensors file, and OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ForeignTextError(msg("it is not a regular file"))
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if start.startswith(b"version "):
            raise LfsPointer(msg("this is a Git LFS pointer, not the weights"))
        if len(start) < 8:
            raise ForeignTextError(msg("only {size} bytes long, so it is not a safetensors file", size=size))
        (length,) = struct.unpack("<Q", start)
        if length > min(size - 8, _LARGEST_HEADER):
            raise ForeignTextError(
                msg(
                    "the header says {length} bytes but the file has {size}: cut short or not safetensors",
                    length=length,
                    size=size,
                )
            )
        text = file.read(length)
    try:
        header = parse_json_object(text, depth=len(text))  # the depth is checked entry by entry
    except ForeignTextError as error:
        raise ForeignTextError(msg("the header is damaged ({error})", error=error)) from None
    header.pop("__metadata__", None)
    if len(header) > _MOST_TENSORS:
        raise ForeignTextError(
            msg("the header lists {count} tensors, but at most {most} are read", count=len(header), most=_MOST_TENSORS)
        )
    if b"\\ud" in text.lower() and (broken := next((name for name in header if not is_text(name)), None)) is not None:
        raise _damaged(broken)
    stored = {name: _entry(path, name, value, 8 + length, size) for name, value in header.items()}
    # Python's reader keeps the last of two entries with the same name. Counting is fast; only a mismatch is examined.
    if any(text.count(key) != len(header) for key in (b'"dtype"', b'"shape"', b'"data_offsets"')):
        _no_doubles(text)
    _in_order(stored, 8 + length, size)
    return stored


def _entry(path: Path, name: str, value: Any, data: int, size: int) -> Stored:
    try:
        shape, dtype, (begin, end) = value["shape"], value["dtype"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        shape = dtype = begin = end = None
    if type(shape) is not list or type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
        raise _damaged(name)
    if len(shape) > _MOST_DIMENSIONS:
        raise ForeignTextError(
            msg("tensor {name} has {count} dimensions, too many for a weight", name=_named(name), count=len(shape))
        )
    count = 1
    for one in shape:
        if type(one) is not int or not 0 <= one < _LARGEST:
            raise _damaged(name)
        count *= one
    if data + end > size:
        raise ForeignTextError(
            msg(
                "tensor {name} should end at byte {end} but the file has {size}: it was cut short",
                name=_named(name),
                end=data + end,
                size=size,
            )
        )
    wide = BYTES.get(dtype) if type(dtype) is str else None
    if wide is None:
        if type(dtype) is not str:
            raise _damaged(name)
        if dtype not in _HALVES:
            raise _unknown(name, dtype)
        needed = -(-count * _HALVES[dtype] // 16)
    else:
        needed = count * wide
    if needed != end - begin:
        raise ForeignTextError(
            msg(
                "tensor {name} has {count} bytes, which is not {dtype} of shape {shape}",
                name=_named(name),
                count=end - begin,
                dtype=dtype,
                shape=list(shape),
            )
        )
    return Stored(path, data + begin, data + end, tuple(shape), dtype)


def _damaged(name: str) -> ForeignTextError:
    return ForeignTextError(msg("the header's entry for {name} is damaged", name=_named(name)))


def _unknown(name: str, dtype: str) -> ForeignTextError:
    return ForeignTextError(
        msg("tensor {name} is of type {dtype}, which is not supported", name=_named(name), dtype=_named(dtype))
    )


def _in_order(stored: dict[str, Stored], begin: int, size: int) -> None:
    """Raise unless every byte of the data belongs to exactly one tensor."""
    at, before = begin, ""
    for start, end, name in sorted([(tensor.begin, tensor.end, name) for name, tensor in stored.items()]):
        if start < at:
            raise ForeignTextError(
                msg(
                    "tensors {one} and {other} overlap, so at least one of them is damaged",
                    one=_named(before),
                    other=_named(name),
                )
            )
        if start > at:
            raise ForeignTextError(
                msg("{count} bytes before tensor {name} belong to no tensor", count=start - at, name=_named(name))
            )
        at, before = end, name
    if at != size:
        raise ForeignTextError(msg("{count} bytes at its end belong to no tensor", count=size - at))


def _no_doubles(text: bytes) -> None:
    import json

    def once(pairs: list[tuple[str, Any]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ForeignTextError(msg("its header has {name} twice", name=_named(twice)))
        return found

    json.JSONDecoder(object_pairs_hook=once).decode(text.decode("utf-8-sig"))


def _named(name: str) -> str:
    """A name for a message: short, on one line."""
    shown = re.sub(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\uffff]", "?", name)
    return shown if len(shown) <= 120 else shown[:120] + "…"
