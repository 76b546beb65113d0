"""What families say is kept of each token because of an adapter is what torch's way back keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend is not installed")
import torch

from finetune_local.models.folder import ModelFolder
from finetune_local.spec.batch import Batch
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings, parse_spec, plan_method
from finetune_local.spec.tuners import tuner_of
from torch_tools import RATE, SFT, TORCH

ROWS, LENGTH = 3, 29
PLACES = ROWS * (LENGTH - 1)  # the last token predicts nothing


def planned(folder: Path, method: str, **settings: Any) -> AdapterPlan:
    spec = parse_spec({"method": {"key": method, **settings}}, "test")
    return plan_method(spec.method, ModelFolder.open(folder).info())


def kept_numbers(folder: Path, method: str, **settings: Any) -> float:
    """fp32 numbers of each token that a step keeps in distinct tensors; what is not made of tokens is left out."""
    session = TORCH.load(folder, "fp32", "cpu")
    session.attach("a", planned(folder, method, **settings), seed=7)
    session.prepare("a", TrainingSettings(max_steps=10))
    alive: list[torch.Tensor] = []
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # so that no address is used twice
        if tensor.numel() % PLACES == 0:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rng = np.random.default_rng(0)
    ids = rng.integers(10, 300, (ROWS, LENGTH)).astype(np.int32)
    mask = np.zeros(ids.shape, bool)
    mask[:, -1] = True
    batch = Batch(ids, np.full(ROWS, LENGTH, np.int32), mask)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        session.step([batch], SFT, RATE)
    return sum(seen.values()) / PLACES / 4


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {"rank": 4}),
        ("lora", {"rank": 4, "targets": ("q_proj", "v_proj", "down_proj")}),
        ("lora", {"rank": 4, "freeze_a": True}),
        ("dora", {"rank": 4}),
        ("adalora", {"init_rank": 6, "target_rank": 4}),
        ("vera", {"rank": 8}),
        ("ia3", {}),
        ("norms", {}),
        ("full", {}),
    ],
)
def test_what_a_method_keeps_of_each_token(tiny: Path, method: str, settings: dict[str, Any]) -> None:
    plan = planned(tiny, method, **settings)
    found = kept_numbers(tiny, method, **settings) - kept_numbers(tiny, "bitfit")  # which keeps nothing of its own
    said = tuner_of(plan).saved_activations(plan)
    assert found == pytest.approx(said, rel=0.1, abs=8), (found, said)  # a trained head keeps one vector more
