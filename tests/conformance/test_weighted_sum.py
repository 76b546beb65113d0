"""Several adapters active at once, with weights: the base answers as if each were merged into its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conforming import ROWS, batch, make_plan
from finetune_local.backend import Backend, Session
from finetune_local.spec.run import parse_spec
from finetune_local.spec.tuners import tuner_of
from finetune_local.system.errors import AdapterError, Unsupported
from tiny import tiny_model

WEIGHTS = {"one": 0.7, "two": -0.4}
MIXES: dict[str, list[dict[str, Any]]] = {
    "lora+lora": [{"key": "lora", "rank": 4}, {"key": "lora", "rank": 2, "targets": ["attention"]}],
    "lora+bitfit": [{"key": "lora", "rank": 4}, {"key": "bitfit", "targets": ["q_proj", "v_proj"]}],
    "vera+adalora": [{"key": "vera", "rank": 4}, {"key": "adalora", "init_rank": 4, "target_rank": 2}],
    "head+embedding": [
        {"key": "lora", "rank": 4, "targets": ["lm_head", "q_proj"]},
        {"key": "lora", "rank": 2, "targets": ["embed_tokens", "lm_head"]},
    ],
}


def attach(session: Session, folder: Path, name: str, method: dict[str, Any], seed: int) -> tuple[Any, Any]:
    """An adapter that differs from the base at every tensor; its plan and tensors."""
    plan = make_plan(parse_spec({"method": method}, "test"), folder)
    session.attach(name, plan, seed)
    rng = np.random.default_rng(seed)
    tensors = {
        key: (value + rng.normal(0, 0.1, value.shape)).astype(np.float32)
        for key, value in session.tensors(name).items()
    }
    session.detach(name)
    session.attach(name, plan, seed, tensors)
    return plan, tensors


def merged(folder: Path, to: Path, adapters: list[tuple[Any, Any, float]]) -> Path:
    """The folder with every weight W as W + Σ weight · (merged(W) − W)."""
    shutil.copytree(folder, to)
    stored = load_file(folder / "model.safetensors")
    result = {}
    for name, weight in stored.items():
        wide = weight.astype(np.float32)
        total = wide.astype(np.float64)
        for plan, tensors, factor in adapters:
            folded_plan, folded = tuner_of(plan).fold(plan, tensors)
            total += factor * (tuner_of(folded_plan).merge(name, wide, folded_plan, folded).astype(np.float64) - wide)
        result[name] = total.astype(np.float32)
    save_file(result, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("mix", list(MIXES))
def test_a_weighted_sum_is_the_merged_sum(backend: Backend, tmp_path: Path, mix: str) -> None:
    folder = tiny_model(tmp_path / "base", "qwen2", tied=False)
    session = backend.load(folder, "fp32")
    bare = session.logits(ROWS[0])
    parts = []
    for number, (name, method) in enumerate(zip(WEIGHTS, MIXES[mix], strict=True)):
        parts.append((*attach(session, folder, name, method, number), WEIGHTS[name]))
    session.activate(WEIGHTS)
    logits, scores = session.logits(ROWS[0]), session.score(batch())
    expected = backend.load(merged(folder, tmp_path / "merged", parts), "fp32")
    np.testing.assert_allclose(logits, expected.logits(ROWS[0]), atol=1e-5)
    np.testing.assert_allclose(scores, expected.score(batch()), atol=1e-5)
    assert np.abs(logits - bare).max() > 1e-2
    session.activate(None)
    np.testing.assert_array_equal(session.logits(ROWS[0]), bare)


def test_weight_one_of_one_is_that_adapter_bit_for_bit(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    for number, name in enumerate(WEIGHTS):
        attach(session, tiny, name, {"key": "lora", "rank": 4}, number)
    session.activate("one")
    alone = session.logits(ROWS[0])
    session.activate({"one": 1.0})
    np.testing.assert_array_equal(session.logits(ROWS[0]), alone)
    session.activate({"one": 1.0, "two": 0.0})
    np.testing.assert_allclose(session.logits(ROWS[0]), alone, atol=1e-5)
    session.activate({"one": 0.5})
    assert np.abs(session.logits(ROWS[0]) - alone).max() > 1e-3
    decoder = session.decoder()
    first = decoder.feed([ROWS[0]])[0]
    np.testing.assert_allclose(first, session.logits(ROWS[0])[-1], atol=1e-5)
    session.activate(None)  # a text goes on under what was active at its start
    np.testing.assert_allclose(decoder.feed([[50]])[0], halves(session, [*ROWS[0], 50]), atol=1e-5)
    session.detach("one")
    assert session.adapters() == ["two"]


def halves(session: Session, ids: list[int]) -> np.ndarray:
    session.activate({"one": 0.5})
    try:
        last: np.ndarray = session.logits(ids)[-1]
        return last
    finally:
        session.activate(None)


@pytest.mark.parametrize("method", ["dora", "ia3", "full", "prefix", "prompt", "adapter"])
def test_what_does_not_add_up_is_refused_with_a_sentence(backend: Backend, tiny: Path, method: str) -> None:
    session = backend.load(tiny, "fp32")
    session.attach("one", make_plan(parse_spec({"method": {"key": "lora"}}, "test"), tiny), 1)
    session.attach("two", make_plan(parse_spec({"method": {"key": method}}, "test"), tiny), 1)
    shown = session.logits(ROWS[0])
    for weights in ({"one": 1.0, "two": 1.0}, {"two": 0.5}):
        with pytest.raises(Unsupported, match="adapter 'two' cannot be part of a weighted sum"):
            session.activate(weights)
    np.testing.assert_array_equal(session.logits(ROWS[0]), shown)
    with pytest.raises(AdapterError, match="no adapter called 'three'"):
        session.activate({"one": 1.0, "three": 1.0})
