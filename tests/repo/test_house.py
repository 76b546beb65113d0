"""The tests' own tools do what they say."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune_local.adapter_format import read_tensors
from offline.sitecustomize import NetworkRefused
from tiny import FAMILIES, MORE_FAMILIES, tiny_model, weights


def test_network_is_refused_here_and_in_children(no_network: None) -> None:
    with pytest.raises(NetworkRefused):
        socket.create_connection(("127.0.0.1", 9))
    with socket.socket() as plain, pytest.raises(NetworkRefused):
        plain.connect(("127.0.0.1", 9))
    code = "import socket; socket.socket().connect(('127.0.0.1', 9))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "NetworkRefused" in child.stderr


@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_tiny_models_are_the_same_each_time(family: str, tmp_path: Path) -> None:
    one, two = tiny_model(tmp_path / "a", family), tiny_model(tmp_path / "b", family)
    assert {f.name: f.read_bytes() for f in one.iterdir()} == {f.name: f.read_bytes() for f in two.iterdir()}


def test_tiny_bfloat16_and_shards(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, dtype="bfloat16", shards=2)
    read = {k: v for file in folder.glob("model-*.safetensors") for k, v in read_tensors(file).items()}
    made = weights("llama", 0, 384, 2, tied=True)
    assert read.keys() == made.keys()
    for name, array in made.items():
        np.testing.assert_allclose(read[name], array, rtol=2**-8)
