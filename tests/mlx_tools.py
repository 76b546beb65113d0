"""What the tests of the MLX backend share: sessions ready to train, and what to compare them with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import log_softmax
from finetune_local.backend import Session, backends
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import TrainingSettings
from tasks import batch_of, plan_of

MLX = backends()["mlx"]
if reason := MLX.missing():
    pytest.skip(reason, allow_module_level=True)  # skips the file that imports this

SFT = objectives()["sft"]
IDS = np.random.default_rng(5).integers(3, 380, 40).tolist()
RATE = 5e-3


def ready(
    folder: Path, method: str = "lora", precision: Any = "fp32", training: dict[str, Any] | None = None, **settings: Any
) -> Session:
    """A session with the adapter "a", ready to train."""
    session = MLX.load(folder, precision, "cpu")
    session.attach("a", plan_of(folder, method, **settings), seed=7)
    session.prepare("a", TrainingSettings(**(training or {})))
    return session


def train(session: Session, steps: int, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        session.seed(step)
        losses.append(session.step([batch_of(seed=step % 4), batch_of(2, 16, seed=9)], SFT, RATE).loss)
    return losses


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def far(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def expected_scores(session: Session, batch: Batch) -> np.ndarray:
    """Row by row, from the whole model's logits, in float64."""
    found = []
    for ids, length, mask in zip(batch.ids, batch.lengths, batch.mask, strict=True):
        logprobs = log_softmax(session.logits(ids[:length].tolist()))
        found += [logprobs[t - 1, ids[t]] for t in np.nonzero(mask)[0]]
    return np.array(found)
