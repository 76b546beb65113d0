"""Safetensors files too big for memory: read a header, read one tensor, write a file one tensor at a time.

Adapters are small; adapter_format.py reads and writes them whole.
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

from finetune_local.adapter_format import as_float32, to_bfloat16_bits
from finetune_local.system.errors import AdapterError, DiskFailed, ModelError
from finetune_local.system.files import failure
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.untrusted.tensor_header import BYTES, LfsPointer, Stored, tensors_of
from finetune_local.system.untrusted.text import ForeignTextError

__all__ = ["BYTES", "Floats", "Pending", "Stored", "largest", "read_header", "read_tensor", "write_tensors"]

Floats = npt.NDArray[np.float32]

_PIECE = 1 << 22
_SAMPLE, _SAMPLES = 1 << 12, 128


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file. Raises ModelError if it is truncated, damaged or no safetensors file."""
    try:
        return tensors_of(path)
    except LfsPointer as error:
        raise ModelError(msg("{path}: {error}. Run `git lfs pull` in its folder.", path=path, error=error)) from None
    except ForeignTextError as error:
        raise ModelError(msg("{path}: {error}. Copy or download the file again.", path=path, error=error)) from None
    except OSError as error:
        raise ModelError(msg("{path}: {strerror}.", path=path, strerror=system_reason(error))) from None


def read_tensor(stored: Stored, name: str) -> Floats:
    """One tensor as fp32 in its stored shape; only its own bytes are read. Raises ModelError."""
    try:
        with stored.file.open("rb") as file:
            file.seek(stored.begin)
            raw = file.read(stored.end - stored.begin)
        return np.asarray(as_float32(raw, stored.dtype, stored.shape), np.float32)
    except OSError as error:
        raise ModelError(msg("{file}: {strerror}.", file=stored.file, strerror=system_reason(error))) from None
    except (AdapterError, ValueError) as error:
        raise ModelError(
            msg("{file}: tensor {name} cannot be read: {error}", file=stored.file, name=name, error=error)
        ) from None


def largest(stored: Stored, name: str) -> float:
    """Largest absolute value of a tensor, read in chunks; infinity counts, NaN is refused. Raises ModelError.

    For 16-bit types only the bits are compared, which is as fast as the disk.
    """
    kind = {"BF16": "<u2", "F16": "<u2", "F32": "<f4"}.get(stored.dtype)
    if kind is None:
        return float(np.abs(read_tensor(stored, name)).max(initial=0.0))
    found = 0.0
    try:
        with stored.file.open("rb") as file:
            file.seek(stored.begin)
            for place in range(stored.begin, stored.end, _PIECE):
                piece = np.frombuffer(file.read(min(_PIECE, stored.end - place)), kind)
                if kind == "<u2":
                    found = max(found, float((piece & 0x7FFF).max(initial=0)))
                else:
                    found = max(found, float(np.abs(piece).max(initial=0.0)))
    except OSError as error:
        raise ModelError(msg("{file}: {strerror}.", file=stored.file, strerror=system_reason(error))) from None
    if kind == "<u2":
        bits = np.array([int(found)], np.uint16)
        return float(
            bits.view(np.float16)[0] if stored.dtype == "F16" else (bits.astype(np.uint32) << 16).view(np.float32)[0]
        )
    return found


def same_numbers(one: Stored, other: Stored, everything: bool) -> bool:
    """Whether two tensors have equal values; compared at a few hundred places unless `everything`."""
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype:
        return bool(np.array_equal(read_tensor(one, "lm_head"), read_tensor(other, "embed_tokens")))
    size, piece = one.end - one.begin, _PIECE if everything else _SAMPLE
    step = piece if everything else max(piece, size // _SAMPLES)
    places = [*range(0, max(0, size - piece), step), max(0, size - piece)]
    try:
        with one.file.open("rb") as first, other.file.open("rb") as second:
            for place in places:
                first.seek(one.begin + place)
                second.seek(other.begin + place)
                count = min(piece, size - place)
                if first.read(count) != second.read(count):
                    return False
    except OSError as error:
        raise ModelError(msg("{file}: {strerror}.", file=one.file, strerror=system_reason(error))) from None
    return True


@dataclass(frozen=True)
class Pending:
    """A tensor to be written: `make` computes it, in fp32, when it is written. `dtype` is BF16, F16 or F32."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    make: Callable[[], Floats]


def write_tensors(path: Path, tensors: Sequence[Pending], progress: Callable[[float], None] | None = None) -> None:
    """Write a safetensors file with one tensor in memory at a time. Raises DiskFailed."""
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
        problem = failure(error, path, msg("Free some space and try again."))
        raise problem or DiskFailed(
            msg("{path} could not be written: {error}. Choose another location.", path=path, error=system_reason(error))
        ) from error


def _stored_as(array: Floats, dtype: str) -> npt.NDArray[np.generic]:
    if dtype == "BF16":
        return np.ascontiguousarray(to_bfloat16_bits(array))
    return np.ascontiguousarray(array, {"F16": np.float16, "F32": np.float32}[dtype])
