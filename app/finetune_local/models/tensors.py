"""Safetensors files without loading them: read a header, read one tensor, write a file one tensor at a time.

For models too big for memory. Adapters, which are small, are read and written whole by layout.py.
Format: https://github.com/huggingface/safetensors#format (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_local.errors import AdapterError, DiskFull, ModelError
from finetune_local.layout import as_float32, to_bfloat16_bits

Floats = npt.NDArray[np.float32]

BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
_LARGEST_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies: its file, its place in it in bytes, its shape and its dtype in safetensors' words."""

    file: Path
    begin: int
    end: int
    shape: tuple[int, ...]
    dtype: str


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file. Raises ModelError where the file is cut short, damaged or no safetensors file."""
    again = "Copy or download the file again."
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start.startswith(b"version "):
                raise ModelError(
                    f"{path}: this is a Git LFS pointer, not the weights. Run `git lfs pull` in its folder."
                )
            if len(start) < 8:
                raise ModelError(f"{path}: only {size} bytes long, so it is no safetensors file. {again}")
            (length,) = struct.unpack("<Q", start)
            if length > min(size - 8, _LARGEST_HEADER):
                raise ModelError(
                    f"{path}: the header says {length} bytes but the file has {size}: cut short or not safetensors. {again}"
                )
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: the header is damaged ({error}). {again}") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: the header is damaged (not a table of tensors). {again}")
    header.pop("__metadata__", None)
    return {name: _entry(path, str(name), value, 8 + length, size) for name, value in header.items()}


def _entry(path: Path, name: str, value: object, data: int, size: int) -> Stored:
    try:
        shape = tuple(int(n) for n in value["shape"])  # type: ignore[index]
        dtype = str(value["dtype"])  # type: ignore[index]
        begin, end = (int(n) for n in value["data_offsets"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError):
        raise ModelError(
            f"{path}: the header's entry for {name} is damaged. Copy or download the file again."
        ) from None
    if not 0 <= begin <= end or min(shape, default=0) < 0:
        raise ModelError(f"{path}: the header's entry for {name} is damaged. Copy or download the file again.")
    if data + end > size:
        raise ModelError(
            f"{path}: tensor {name} should end at byte {data + end} but the file has {size}: it was cut short. "
            "Copy or download the file again."
        )
    if dtype in BYTES and end - begin != math.prod(shape) * BYTES[dtype]:
        raise ModelError(
            f"{path}: tensor {name} has {end - begin} bytes, which is not {dtype} of shape {list(shape)}. "
            "Copy or download the file again."
        )
    return Stored(path, data + begin, data + end, shape, dtype)


def read_tensor(stored: Stored, name: str) -> Floats:
    """One tensor as fp32, of its stored shape; only its own bytes are read. Raises ModelError."""
    try:
        with stored.file.open("rb") as file:
            file.seek(stored.begin)
            raw = file.read(stored.end - stored.begin)
        return np.asarray(as_float32(raw, stored.dtype, stored.shape), np.float32)
    except OSError as error:
        raise ModelError(f"{stored.file}: {error.strerror}.") from None
    except (AdapterError, ValueError) as error:
        raise ModelError(f"{stored.file}: tensor {name} cannot be read: {error}") from None


@dataclass(frozen=True)
class Pending:
    """A tensor to be written: `make` gives it as fp32 when its turn comes. `dtype` is BF16, F16 or F32."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], Floats]


def write_tensors(path: Path, tensors: Sequence[Pending], progress: Callable[[float], None] | None = None) -> None:
    """Write a safetensors file, holding one tensor in memory at a time. Raises DiskFull."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for tensor in tensors:
        size = math.prod(tensor.shape) * BYTES[tensor.dtype]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    done = 0
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors:
                array = tensor.make()
                if array.shape != tensor.shape:
                    raise ValueError(f"{tensor.name}: made with shape {array.shape}, announced as {tensor.shape}")
                file.write(_stored_as(array, tensor.dtype).data)
                done += array.size * BYTES[tensor.dtype]
                if progress is not None:
                    progress(done / place)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DiskFull(f"{path} could not be written: {error.strerror}. Make room and try again.") from error


def _stored_as(array: Floats, dtype: str) -> npt.NDArray[np.generic]:
    if dtype == "BF16":
        return np.ascontiguousarray(to_bfloat16_bits(array))
    return np.ascontiguousarray(array, {"F16": np.float16, "F32": np.float32}[dtype])
