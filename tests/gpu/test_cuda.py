"""What only a card can show: bf16 and 4-bit training with paged optimizers, and running out of its memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.backend import Session, backends
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import objectives
from finetune_local.spec.plan import AdapterPlan, BaseInfo, WeightInfo
from finetune_local.spec.run import TrainingSettings, parse_spec, plan_method
from finetune_local.system.errors import OutOfMemory
from tiny import tiny_model

TORCH = backends()["torch"]
HAS_CARD = TORCH.missing() is None and TORCH.devices()[0].kind == "cuda"
pytestmark = pytest.mark.skipif(not HAS_CARD, reason="torch finds no NVIDIA card here (tests/gpu/README.md)")
SFT = objectives()["sft"]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with an embedding big enough that bitsandbytes pages its states (100 000 numbers)."""
    return tiny_model(tmp_path_factory.mktemp("gpu") / "llama", vocab=2048)


def plan_of(folder: Path, method: str, **settings: Any) -> AdapterPlan:
    raw = (folder / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    weights = {n: WeightInfo(tuple(e["shape"]), e["dtype"]) for n, e in header.items() if n != "__metadata__"}
    spec = parse_spec({"method": {"key": method, **settings}}, "test")
    return plan_method(spec.method, BaseInfo(weights))


def batch_of(rows: int = 4, length: int = 24) -> Batch:
    rng = np.random.default_rng(0)
    lengths = rng.integers(length // 2, length + 1, rows).astype(np.int32)
    lengths[0] = length
    ids = rng.integers(3, 380, (rows, length)).astype(np.int32)
    columns = np.arange(length)[None]
    mask = (columns >= length // 2 - 2) & (columns < lengths[:, None])
    return Batch(ids * (columns < lengths[:, None]), lengths, mask)


def ready(folder: Path, method: str, precision: Any, optimizer: Any = "adamw", **training: Any) -> Session:
    session = TORCH.load(folder, precision)
    assert session.device.kind == "cuda"
    session.attach("a", plan_of(folder, method), seed=7)
    session.prepare("a", TrainingSettings(optimizer=optimizer, **training))
    return session


def train(session: Session, steps: int) -> list[float]:
    return [session.step([batch_of()], SFT, 3e-3).loss for _ in range(steps)]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit", "paged-adamw", "paged-adamw-8bit"])
@pytest.mark.parametrize(
    ("method", "precision"),
    [("lora", "fp32"), ("lora", "bf16"), ("qlora", "4-bit"), ("qdora", "4-bit"), ("lora", "8-bit"), ("full", "bf16")],
)
def test_the_loss_falls_and_a_resume_goes_on(wide: Path, method: str, precision: str, optimizer: str) -> None:
    ours = ready(wide, method, precision, optimizer)
    losses = train(ours, 10)
    assert losses[-1] < losses[0] - 0.1
    tensors, state = ours.tensors("a"), ours.optimizer_state()
    again = TORCH.load(wide, precision)  # type: ignore[arg-type]
    again.attach("a", plan_of(wide, method), seed=99, tensors=tensors)
    again.prepare("a", TrainingSettings(optimizer=optimizer))  # type: ignore[arg-type]
    again.restore_optimizer(state)
    np.testing.assert_allclose(train(again, 3), train(ours, 3), rtol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "8-bit", "4-bit"])
def test_the_bare_base_comes_back_exactly(wide: Path, precision: str) -> None:
    ours = TORCH.load(wide, precision)  # type: ignore[arg-type]
    before = ours.logits([5, 6, 7, 8])
    ours.attach("a", plan_of(wide, "lora"), seed=7)
    ours.prepare("a", TrainingSettings(gradient_checkpointing=True))
    train(ours, 5)
    assert np.abs(ours.logits([5, 6, 7, 8]) - before).max() > 1e-2
    ours.activate(None)
    np.testing.assert_array_equal(ours.logits([5, 6, 7, 8]), before)


def test_fp32_equals_the_cpu(wide: Path) -> None:
    card = ready(wide, "dora", "fp32")
    cpu = TORCH.load(wide, "fp32", "cpu")
    cpu.attach("a", plan_of(wide, "dora"), seed=7)
    cpu.prepare("a", TrainingSettings())
    np.testing.assert_allclose(train(card, 10), train(cpu, 10), atol=1e-3)


def test_out_of_memory_leaves_everything_as_it_was(wide: Path) -> None:
    import torch

    ours, undisturbed = ready(wide, "lora", "bf16"), ready(wide, "lora", "bf16")
    train(ours, 2)
    train(undisturbed, 2)
    batch = batch_of()
    big = Batch(np.tile(batch.ids, (20_000, 1)), np.tile(batch.lengths, 20_000), np.tile(batch.mask, (20_000, 1)))
    torch.cuda.set_per_process_memory_fraction(1e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(OutOfMemory, match="micro-batch-tokens"):
            ours.step([batch, big], SFT, 3e-3)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert ours.memory().current_bytes < 500e6, "what the failed step allocated was not given back"
    np.testing.assert_allclose(train(ours, 2), train(undisturbed, 2), rtol=1e-4)
