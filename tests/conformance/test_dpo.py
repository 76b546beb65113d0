"""DPO's loss, gradients and metrics are TRL's, in numpy and over each backend's own arrays (numbers by dpo_by_trl.py)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.backend import backends
from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import LOSS, Objective, objectives
from finetune_local.spec.ops import NUMPY

CASES = json.loads((Path(__file__).with_name("dpo_by_trl.json")).read_text("utf-8"))
DPO = objectives()["dpo"]


def objective(beta: float) -> Objective:
    return DPO.with_settings(DPO.settings(beta=beta))


def batch_of(case: dict[str, Any]) -> Batch:
    """A batch whose supervised tokens are the case's: a first token that is none, then the answer."""
    lengths = np.array(case["lengths"], np.int32) + 1
    columns = np.arange(int(lengths.max()))
    mask = (columns > 0) & (columns < lengths[:, None])
    rows = len(lengths)
    return Batch(
        np.zeros(mask.shape, np.int32),
        lengths,
        mask,
        np.arange(rows, dtype=np.int32) // 2,
        np.tile(np.array([1, -1], np.float32), rows // 2),
        np.array(case["reference"], np.float32),
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"beta {case['beta']}")
def test_the_loss_and_the_metrics_are_trls(case: dict[str, Any]) -> None:
    dpo, batch = objective(case["beta"]), batch_of(case)
    assert dpo.count(batch) == len(case["lengths"]) // 2
    readout = Readout(np.array(case["policy"], np.float32))
    found = {name: mean.value for name, mean in dpo.metrics(readout, batch).items()}
    assert float(dpo.loss(NUMPY, readout, batch, dpo.count(batch))) == pytest.approx(case["loss"], abs=1e-6)
    assert found[LOSS] == pytest.approx(case["loss"], abs=1e-6)
    for name in ("chosen_reward", "rejected_reward", "accuracy"):
        assert found[name] == pytest.approx(case[name], abs=1e-6)
    assert found["margin"] == pytest.approx(case["chosen_reward"] - case["rejected_reward"], abs=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"beta {case['beta']}")
def test_the_gradients_are_trls(case: dict[str, Any]) -> None:
    dpo, batch = objective(case["beta"]), batch_of(case)
    total = float(dpo.count(batch))
    gradients = {}
    if backends()["torch"].missing() is None:
        import torch

        from finetune_local_backends.torch.ops import TorchOps

        leaf = torch.tensor(case["policy"], dtype=torch.float32, requires_grad=True)
        dpo.loss(TorchOps(torch.device("cpu")), Readout(leaf), batch, total).backward()
        assert leaf.grad is not None
        gradients["torch"] = leaf.grad.numpy()
    if backends()["mlx"].missing() is None:
        import mlx.core as mx

        from finetune_local_backends.mlx.ops import OPS

        slope = mx.grad(lambda logprobs: dpo.loss(OPS, Readout(logprobs), batch, total))
        gradients["mlx"] = np.array(slope(mx.array(np.array(case["policy"], np.float32))))
    assert gradients
    for found in gradients.values():
        np.testing.assert_allclose(found, case["gradient"], atol=1e-6)


def test_without_an_adapter_the_loss_is_that_of_a_coin() -> None:
    case = {**CASES[0], "policy": CASES[0]["reference"]}
    readout = Readout(np.array(case["policy"], np.float32))
    assert objective(0.3).metrics(readout, batch_of(case))[LOSS].value == pytest.approx(math.log(2))


def test_the_automatic_rate_is_a_tenth() -> None:
    assert DPO.lr_factor == 0.1 and objectives()["sft"].lr_factor == 1.0
