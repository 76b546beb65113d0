from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from finetune_local.adapter_format import read_tensors
from finetune_local.models.tensors import Pending, Stored, read_header, read_tensor, write_tensors
from finetune_local.system.errors import DiskFailed, ModelError


def test_what_is_written_is_what_the_library_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(3, 5)), "权重": rng.normal(size=(7,)), "empty": np.zeros((0, 4))}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    alive: list[str] = []

    def maker(name: str) -> Pending:
        def make() -> np.ndarray:
            alive.append(name)
            return arrays[name]

        return Pending(name, arrays[name].shape, "F32", make)

    seen: list[float] = []
    write_tensors(tmp_path / "x.safetensors", [maker(name) for name in arrays], seen.append)
    read = load_file(tmp_path / "x.safetensors")
    assert alive == list(arrays)
    assert seen[-1] == 1.0
    assert all(np.array_equal(read[name], arrays[name]) for name in arrays)
    header = read_header(tmp_path / "x.safetensors")
    assert all(np.array_equal(read_tensor(header[name], name), arrays[name]) for name in arrays)


@pytest.mark.parametrize(("dtype", "exact"), [("F32", 0.0), ("F16", 2**-11), ("BF16", 2**-8)])
def test_types_round_to_the_nearest(tmp_path: Path, dtype: str, exact: float) -> None:
    values = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    write_tensors(tmp_path / "x.safetensors", [Pending("x", (1000,), dtype, lambda: values)])
    got = read_tensors(tmp_path / "x.safetensors")["x"]
    assert float(np.max(np.abs(got - values) / np.abs(values))) <= exact


def test_a_shape_that_does_not_hold_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="made with shape"):
        write_tensors(tmp_path / "x", [Pending("x", (2, 2), "F32", lambda: np.zeros(3, np.float32))])


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiskFailed, match="could not be written"):
        write_tensors(tmp_path / "no" / "x", [Pending("x", (1,), "F32", lambda: np.zeros(1, np.float32))])


def test_integers_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(8))
    with pytest.raises(ModelError, match=r"tensor packed cannot be read.*I32"):
        read_tensor(Stored(tmp_path / "x", 0, 8, (2,), "I32"), "packed")
