"""An adapter extracted from a full fine-tune answers as that did, on every backend; at a lower rank nearly so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from conforming import ROWS, SFT, batch, log_softmax, make_case
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.adapters.extraction.extract import extract
from finetune_local.adapters.extraction.tuned import from_adapter, from_folder
from finetune_local.backend import Backend
from finetune_local.models.folder import ModelFolder

TEXT = list(ROWS[2])
WIDE = ("q_proj", "o_proj", "mlp")
"""Layers of the tiny model with 64 as the smaller side: a full rank for all of them."""


@pytest.fixture
def tuned(tiny: Path, tmp_path: Path) -> Path:
    """The tiny model with other numbers in WIDE alone."""
    model, rng = ModelFolder.open(tiny), np.random.default_rng(3)
    wide = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    weights = {}
    for name, info in model.weights().items():
        weights[name] = model.read(name).copy()
        if name.split(".")[-2] in wide:
            weights[name] += rng.normal(0, 0.03, info.shape).astype(np.float32)
    shutil.copytree(tiny, tmp_path / "tuned")
    save_file(weights, tmp_path / "tuned" / "model.safetensors")
    return tmp_path / "tuned"


def test_at_full_rank_it_is_the_tuned_model(backend: Backend, tiny: Path, tuned: Path, tmp_path: Path) -> None:
    base = ModelFolder.open(tiny)
    done = extract(base, from_folder(tuned, base), tmp_path / "a", rank=64, targets=WIDE)
    assert done.error < 1e-6 and not done.left
    wanted = backend.load(tuned, "fp32").logits(TEXT)
    session = backend.load(tiny, "fp32")
    before = session.logits(TEXT)
    plan, tensors = read_adapter(tmp_path / "a")
    session.attach("a", plan, 0, tensors)
    assert np.abs(before - wanted).max() > 0.1
    np.testing.assert_allclose(session.logits(TEXT), wanted, atol=2e-4)


def test_it_comes_nearer_with_the_rank(backend: Backend, tiny: Path, tuned: Path, tmp_path: Path) -> None:
    base = ModelFolder.open(tiny)
    wanted = log_softmax(backend.load(tuned, "fp32").logits(TEXT))
    session = backend.load(tiny, "fp32")
    far = [np.abs(log_softmax(session.logits(TEXT)) - wanted).mean()]
    for rank in (8, 32, 56):
        extract(base, from_folder(tuned, base), tmp_path / str(rank), rank=rank, targets=WIDE)
        plan, tensors = read_adapter(tmp_path / str(rank))
        session.attach(str(rank), plan, 0, tensors)
        far.append(np.abs(log_softmax(session.logits(TEXT)) - wanted).mean())
    assert far == sorted(far, reverse=True) and far[-1] < 0.2 * far[0], far


def test_what_this_backend_tuned_is_extracted(backend: Backend, tiny: Path, tmp_path: Path) -> None:
    case = make_case(backend, "full", tiny, precision="fp32")
    base_loss = -float(case.session.score(batch()).mean())
    case.attach()
    case.session.prepare("a", case.spec.training)
    for step in range(10):
        case.session.seed(step)
        case.session.step([batch()], SFT, 1e-3)
    full_loss = -float(case.session.score(batch()).mean())
    write_adapter(tmp_path / "full", case.plan, case.session.tensors("a"), "tiny")
    base = ModelFolder.open(tiny)
    done = extract(base, from_adapter(tmp_path / "full", base), tmp_path / "lora", rank=32)
    assert {left.kind for left in done.left} == {"embedding", "norm"}
    session = case.reload()
    plan, tensors = read_adapter(tmp_path / "lora")
    session.attach("b", plan, 0, tensors)
    loss = -float(session.score(batch()).mean())
    assert full_loss < loss < base_loss - 0.5 * (base_loss - full_loss), (base_loss, loss, full_loss)
