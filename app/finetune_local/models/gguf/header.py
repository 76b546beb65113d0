"""A GGUF file's metadata and tensor locations, read within limits. Nothing is loaded.

The gguf package's reader trusts every count and offset in the file.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, as strictly as llama.cpp reads it: unique names, up to four
dimensions, tensors back to back.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from finetune_local.models.tensors import Floats
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg, system_reason

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_MOST_VALUES, _MOST_TENSORS, _MOST_ITEMS = 10_000, 100_000, 4_000_000
_MOST_DIMENSIONS = 4  # ggml's own
_LONGEST_NAME, _LONGEST_TEXT = 1 << 10, 1 << 24
_LARGEST_ALIGNMENT = 1 << 20
_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
AGAIN = msg("Copy or download it again.")
HUB_TAG = "gguf"
"""The hub's tag for repositories with GGUF files."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor: its shape in Hugging Face's order, its quantization type, its location."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    begin: int
    end: int


@dataclass(frozen=True)
class Gguf:
    """A GGUF file's header."""

    file: Path
    values: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    def read(self, name: str) -> Floats:
        """A tensor as fp32. Raises ModelError if its type is not supported, or it holds NaN or infinity."""
        from gguf import dequantize

        tensor = self.tensors[name]
        try:
            with self.file.open("rb") as content, np.errstate(all="ignore"):
                content.seek(tensor.begin)
                raw = np.frombuffer(content.read(tensor.end - tensor.begin), np.uint8)
                rows = raw.reshape(-1, raw.size * tensor.shape[-1] // max(1, math.prod(tensor.shape)))
                found = np.asarray(dequantize(rows, tensor.kind), np.float32).reshape(tensor.shape)
        except (NotImplementedError, ValueError) as error:
            raise ModelError(
                msg(
                    "{file}: tensor {name} ({kind}) cannot be read: {error}. Try a Q8_0 or F16 file.",
                    file=self.file,
                    name=name,
                    kind=tensor.kind.name,
                    error=error,
                )
            ) from None
        except OSError as error:
            raise ModelError(
                msg("{file}: {strerror}. {again}", file=self.file, strerror=system_reason(error), again=AGAIN)
            ) from None
        if not np.isfinite(found.sum(dtype=np.float64)) and not np.isfinite(found).all():
            raise ModelError(
                msg(
                    "{file}: tensor {name} contains NaN or infinite values, so it cannot be used. {again}",
                    file=self.file,
                    name=name,
                    again=AGAIN,
                )
            )
        return found


def open_gguf(file: Path) -> Gguf:
    """Read the header. Raises ModelError naming what is damaged."""
    try:
        if not file.is_file():
            raise ModelError(msg("{file}: file not found.", file=file))
        with file.open("rb") as content:
            return _Reader(file, content).all()
    except OSError as error:
        raise ModelError(msg("{file}: {strerror}.", file=file, strerror=system_reason(error))) from None


class _Reader:
    def __init__(self, file: Path, content: BinaryIO) -> None:
        self.file, self.content = file, content
        self.size, self.at = os.fstat(content.fileno()).st_size, 0
        self.items = 0

    def all(self) -> Gguf:
        if self.bytes_of(4, "its first bytes") != b"GGUF":
            raise self.damaged(msg("not a GGUF file"))
        version = self.number(4)
        if version not in (2, 3):
            what = (
                msg("it is for machines of another byte order")
                if version >> 16
                else msg("its version is {version}", version=version)
            )
            raise self.damaged(msg("{what}; only versions 2 and 3 can be read", what=what))
        tensors, values = self.number(10), self.number(10)
        if tensors > _MOST_TENSORS or values > _MOST_VALUES:
            raise self.damaged(
                msg(
                    "it claims to have {tensors} tensors and {values} values of metadata",
                    tensors=tensors,
                    values=values,
                )
            )
        found: dict[str, Any] = {}
        for _ in range(values):
            key = self.text(_LONGEST_NAME, msg("a name in its metadata"))
            if key in found:
                raise self.damaged(msg("its metadata has '{key}' twice", key=key))
            found[key] = self.value(self.number(4), key)
        infos = [self.tensor() for _ in range(tensors)]
        return Gguf(self.file, found, self.placed(infos, self.alignment(found)))

    def damaged(self, what: str) -> ModelError:
        return ModelError(
            msg("{file}: not a GGUF file, or damaged ({what}). {again}", file=self.file, what=what, again=AGAIN)
        )

    def bytes_of(self, count: int, what: str) -> bytes:
        if count > self.size - self.at:
            raise self.damaged(
                msg(
                    "{what} would be {count} bytes at byte {at}, and the file has {size}",
                    what=what,
                    count=count,
                    at=self.at,
                    size=self.size,
                )
            )
        self.at += count
        return self.content.read(count)

    def number(self, kind: int) -> Any:
        code = _NUMBERS[kind]
        return struct.unpack(code, self.bytes_of(struct.calcsize(code), msg("a number")))[0]

    def text(self, most: int, what: str) -> str:
        length = self.number(10)
        if length > most:
            raise self.damaged(msg("{what} is {length} bytes long", what=what, length=length))
        try:
            return self.bytes_of(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged(msg("{what} is not UTF-8 text", what=what)) from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text(_LONGEST_TEXT, f"'{key}'")
        if kind != _ARRAY:
            if kind not in _NUMBERS:
                raise self.damaged(msg("'{key}' is of the unknown type {type}", key=key, type=kind))
            return self.number(kind)
        inner, count = self.number(4), self.number(10)
        self.items += count
        if self.items > _MOST_ITEMS:
            raise self.damaged(msg("'{key}' has {count} items", key=key, count=count))
        if inner == _STRING:
            return [self.text(_LONGEST_TEXT, msg("an item of '{key}'", key=key)) for _ in range(count)]
        if inner not in _NUMBERS:
            raise self.damaged(msg("'{key}' is a list of lists, or of an unknown type ({type})", key=key, type=inner))
        code = _NUMBERS[inner]
        return [one for (one,) in struct.iter_unpack(code, self.bytes_of(count * struct.calcsize(code), f"'{key}'"))]

    def tensor(self) -> GgufTensor:
        """A tensor as stored in the header: `begin` is relative to the data section."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self.text(_LONGEST_NAME, msg("the name of a tensor"))
        dimensions = self.number(4)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(msg("tensor {name} has {count} dimensions", name=name, count=dimensions))
        sizes = [self.number(10) for _ in range(dimensions)]
        number, begin = self.number(4), self.number(10)
        if number not in set(GGMLQuantizationType):
            raise ModelError(
                msg(
                    "{file}: tensor {name} is of type {number}, which is not supported. Try a Q8_0 or F16 file.",
                    file=self.file,
                    name=name,
                    number=number,
                )
            )
        kind = GGMLQuantizationType(number)
        block, size = GGML_QUANT_SIZES[kind]
        if not all(1 <= one < 2**40 for one in sizes) or sizes[0] % block:
            raise self.damaged(
                msg(
                    "tensor {name} cannot be {kind} of {sizes} numbers",
                    name=name,
                    kind=kind.name,
                    sizes=" × ".join(map(str, sizes)),
                )
            )
        return GgufTensor(name, tuple(reversed(sizes)), kind, begin, begin + math.prod(sizes) // block * size)

    def alignment(self, values: Mapping[str, Any]) -> int:
        found = values.get("general.alignment", 32)
        if type(found) is not int or not 1 <= found <= _LARGEST_ALIGNMENT or found & (found - 1):
            raise self.damaged(msg("'general.alignment' is {value}", value=f"{found!r:.60}"))
        return found

    def placed(self, infos: list[GgufTensor], alignment: int) -> dict[str, GgufTensor]:
        """Absolute locations: tensors are back to back, each aligned."""
        start = -(-self.at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        expected = 0
        for info in sorted(infos, key=lambda info: info.begin):
            if info.name in found:
                raise self.damaged(msg("tensor {name} is in it twice", name=info.name))
            if info.begin != expected:
                raise self.damaged(
                    msg(
                        "tensor {name} begins at byte {begin} of the data, where {expected} is expected: tensors overlap, or "
                        "something is missing between them",
                        name=info.name,
                        begin=info.begin,
                        expected=expected,
                    )
                )
            if start + info.end > self.size:
                raise self.damaged(
                    msg(
                        "tensor {name} should end at byte {end}, and the file has {size}",
                        name=info.name,
                        end=start + info.end,
                        size=self.size,
                    )
                )
            found[info.name] = GgufTensor(info.name, info.shape, info.kind, start + info.begin, start + info.end)
            expected = -(-info.end // alignment) * alignment
        return found


@dataclass(frozen=True)
class Metadata:
    """A file's metadata with typed access. Every getter raises ModelError if the value has another type."""

    file: Path
    values: Mapping[str, Any]

    def whole(self, key: str, most: int, default: int | None = None, least: int = 1) -> int:
        """An integer from `least` to `most`; required unless there is a default."""
        value = self._value(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(key, value, msg("a whole number from {low} to {high}", low=least, high=most))
        return value

    def real(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A number within bounds."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self._wrong(key, value, msg("a number from {low} to {high}", low=f"{low:g}", high=f"{high:g}"))
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, msg("a text"))
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self._value(key, None)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(key, value, msg("a list of texts"))
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, msg("true or false"))
        return value

    def token(self, key: str, tokens: int) -> int | None:
        """A token id below the given count; None if absent, -1 or 2³²−1."""
        value = self.values.get(key)
        if value is None or (type(value) is int and value in (-1, 2**32 - 1)):
            return None
        if type(value) is not int or not 0 <= value < tokens:
            raise self._wrong(key, value, msg("the number of one of its {count} tokens", count=tokens))
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise ModelError(
                msg("{file}: its metadata lacks {key}. Download the file from another source.", file=self.file, key=key)
            )
        return value

    def _wrong(self, key: str, value: Any, words: str) -> ModelError:
        shown = msg("a list") if isinstance(value, list) else msg("{value}", value=f"{value!r:.60}")
        return ModelError(
            msg(
                "{file}: its metadata says that {key} is {value}, but it must be {words}. Download the file from "
                "another source.",
                file=self.file,
                key=key,
                value=shown,
                words=words,
            )
        )
