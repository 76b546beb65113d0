"""Headers of safetensors files: the format's rules are kept, and nothing in one costs time or memory."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from finetune_local.models.tensors import read_header
from finetune_local.system.errors import ModelError


def write(path: Path, header: object, data: int = 64) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8")
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def entry(begin: int, end: int, kind: Any = "F32", shape: Any = None) -> dict[str, Any]:
    return {"dtype": kind, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": entry(0, 64), "b": entry(0, 64)}, "tensors a and b overlap"),
        ({"a": entry(0, 40), "b": entry(32, 64)}, "tensors a and b overlap"),
        ({"a": entry(0, 32), "b": entry(36, 64)}, "4 bytes before tensor b belong to no tensor"),
        ({"a": entry(4, 64)}, "4 bytes before tensor a belong to no tensor"),
        ({"a": entry(0, 60)}, "4 bytes at its end belong to no tensor"),
        ({"a": entry(0, 64, "F16", [16])}, r"64 bytes, which is not F16 of shape \[16\]"),
        ({"a": entry(0, 64, "X")}, "of type X, which is not supported"),
        ({"a": entry(0, 64, None)}, "entry for a is damaged"),
        ({"a": entry(0, 64, "F32", [2**32, 2**32])}, "which is not F32 of shape"),
        ({"a": entry(0, 64, "F32", [2**62, 4])}, "entry for a is damaged"),
        ({"a": entry(0, 64, "F32", [16] + [1] * 71)}, "has 72 dimensions"),
        ({"a": entry(0, 64, "F32", [16.0])}, "entry for a is damaged"),
        ({"a": entry(0, 64, "F32", ["16"])}, "entry for a is damaged"),
        ({"a": entry(0, 64, "F32", [True])}, "entry for a is damaged"),
        ({"a": {**entry(0, 64), "data_offsets": [0.0, 64.0]}}, "entry for a is damaged"),
        ({"a": {**entry(0, 64), "data_offsets": [0]}}, "entry for a is damaged"),
        (b'{"a": {"dtype":"F32","shape":[16],"data_offsets":[0,64]}, "a": {"dtype":"F32","shape":[16],"data_offsets":[0,64]}}', "has a twice"),
        (b'{"a": {"dtype":"F32","shape":[1],"shape":[16],"data_offsets":[0,64]}}', "has shape twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b"[" * 100_000, "nested more than"),
        (b"{", "the header is damaged"),
        (b"\xff{}", "the header is damaged"),
        ({"\ud800": entry(0, 64)}, r"entry for \? is damaged"),
        ({"a" * 5000: "x"}, "damaged"),
    ],
)  # fmt: skip
def test_what_the_format_forbids_is_told(tmp_path: Path, header: object, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        read_header(write(tmp_path / "x.safetensors", header))
    assert len(str(caught.value)) < 1000
    str(caught.value).encode("utf-8")


def test_what_it_allows_is_read(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"dtype": '"dtype"'},
        "empty": entry(0, 0, "F32", [0, 4]),
        "a": entry(0, 32),
        "b": entry(32, 64),
    }
    assert list(read_header(write(tmp_path / "x", header))) == ["empty", "a", "b"]
    halves = {"a": entry(0, 64, "F4", [128])}
    assert read_header(write(tmp_path / "y", halves))["a"].shape == (128,)


def test_many_tensors_are_read_or_refused_in_little_time(tmp_path: Path) -> None:
    begun = time.process_time()
    many = {f"model.layers.{i}.mlp.up_proj.weight": entry(4 * i, 4 * i + 4) for i in range(20_000)}
    assert len(read_header(write(tmp_path / "x", many, 80_000))) == 20_000
    assert time.process_time() - begun < 5
