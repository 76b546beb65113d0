"""The torch backend and the machine: which device computes, which build is installed, running out of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend is not installed")
import torch

from finetune_local.system.errors import OutOfMemory
from finetune_local_backends.torch import memory
from torch_tools import TORCH


@pytest.mark.parametrize("precision", ["8-bit", "4-bit"])
def test_a_quantised_base_stays_on_the_cpu_where_that_was_asked_for(
    tiny: Path, precision: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as beside a card, which is not there to be used
    assert np.isfinite(TORCH.load(tiny, precision, "cpu").logits([5, 6, 7])).all()


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_every_way_to_run_out_of_memory_is_one_error(said: str) -> None:
    with pytest.raises(OutOfMemory, match="micro-batch-tokens"), memory.guard("train"):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), memory.guard("train"):
        raise RuntimeError("shapes do not fit")


def test_a_build_for_cpus_is_known_whatever_its_version_says(tmp_path: Path) -> None:
    """PyPI's wheel for Windows is called 2.13.0, as the CUDA build for Linux is."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('imported')", "utf-8")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from finetune_local_backends.torch import device\n"
        "device.nvidia_card = lambda: True\n"
        "print(device.build(), device.notes()[0] if device.build() == 'cpu' else '')"
    )
    for cuda, hip, built in (("None", "None", "cpu"), ("'13.0'", "None", "cuda"), ("None", "'7.0'", "rocm")):
        (tmp_path / "torch" / "version.py").write_text(
            f"__version__ = '2.13.0'\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = {hip}\n", "utf-8"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == built
        assert ("is the build for CPUs" in done.stdout) == (built == "cpu")
