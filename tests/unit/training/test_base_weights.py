"""The digests of a base's weights: of every byte where that is quick, else of places in each file."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_local.training.checkpoints import restore
from finetune_local.training.checkpoints.restore import weights_of


def changed(file: Path, at: int) -> Path:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_every_byte_counts(tmp_path: Path, size: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(size))
    before = weights_of([file])
    assert before.whole and before == weights_of([file])
    if size:
        assert weights_of([changed(file, size // 2)]) != before


def test_of_a_large_base_a_sample_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "WHOLE", 0)
    monkeypatch.setattr(restore, "_PLACE_BYTES", 16)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(64 * 160))
    before = weights_of([file])
    assert not before.whole
    assert weights_of([changed(file, 100)]) == before, "between two places: this is not promised"
    for at in (0, 15, 64 * 160 - 1):
        assert weights_of([changed(file, at)]) != before
        changed(file, at)
    file.write_bytes(bytes(64 * 160 - 1))
    assert weights_of([file]) != before
