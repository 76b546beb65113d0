"""Several adapters trained at once on one base: each result is that of training it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import PROMPT, ROWS, SFT, batch, make_plan, make_spec
from finetune_local.backend import Backend, Session, StepRequest
from finetune_local.spec.run import RunSpec, parse_spec
from finetune_local.spec.tuners import presets, tuner_of
from finetune_local.system.errors import Unsupported
from tasks import batch_of
from tiny import tiny_model

MIX: dict[str, dict[str, Any]] = {
    "一": {"key": "lora", "rank": 4},
    "two": {"key": "dora", "rank": 2, "targets": ["attention"]},
    "three": {"key": "lora", "rank": 8, "layers": "last:1", "scaling": "rslora"},
}
BATCHES = {
    "一": [batch_of(3, 20, seed=1), batch_of(2, 12, seed=2)],
    "two": [batch_of(2, 30, seed=3)],
    "three": [batch(ROWS[:2], PROMPT), batch(ROWS[2:], PROMPT), batch_of(1, 16, seed=4)],
}
RATES = {"一": 1e-2, "two": 5e-3, "three": 2e-2}


def spec_of(method: dict[str, Any], **training: Any) -> RunSpec:
    return parse_spec({"method": method, "training": {"warmup": 0.0, "optimizer": "adamw", **training}}, "test")


def begin(session: Session, folder: Path, name: str, method: dict[str, Any], **training: Any) -> None:
    spec = spec_of(method, **training)
    session.attach(name, make_plan(spec, folder), 1)
    session.prepare(name, spec.training)


def both_ways(
    backend: Backend, folder: Path, mix: dict[str, dict[str, Any]], precision: Any = "fp32", steps: int = 6, **more: Any
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, Session], Session]:
    """Losses of each alone and of all together, and the sessions."""
    alone, sessions = {}, {}
    for name, method in mix.items():
        sessions[name] = backend.load(folder, precision)
        begin(sessions[name], folder, name, method, **more)
        alone[name] = [sessions[name].step(BATCHES[name], SFT, RATES[name]).loss for _ in range(steps)]
    session = backend.load(folder, precision)
    for name, method in mix.items():
        begin(session, folder, name, method, **more)
    together: dict[str, list[float]] = {name: [] for name in mix}
    for _ in range(steps):
        results = session.step_many([StepRequest(name, BATCHES[name], SFT, RATES[name]) for name in mix])
        for name, result in zip(mix, results, strict=True):
            together[name].append(result.loss)
    return alone, together, sessions, session


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], atol: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=atol, err_msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_is_trained_as_if_alone(backend: Backend, tiny: Path, checkpointing: bool) -> None:
    alone, together, sessions, session = both_ways(backend, tiny, MIX, gradient_checkpointing=checkpointing)
    for name in MIX:
        np.testing.assert_allclose(together[name], alone[name], atol=1e-5)
        assert alone[name][-1] < alone[name][0] - 0.05
        same(session.tensors(name), sessions[name].tensors(name), 2e-4)
        same(
            {k: np.asarray(v, np.float64) for k, v in session.optimizer_state(name).items()},
            {k: np.asarray(v, np.float64) for k, v in sessions[name].optimizer_state().items()},
            2e-4,
        )


def test_on_a_base_in_four_bits(backend: Backend, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    alone, together, _, _ = both_ways(backend, folder, MIX, "4-bit", steps=3)
    for name in MIX:
        np.testing.assert_allclose(together[name], alone[name], atol=1e-4)


def test_what_is_active_afterwards_is_one_adapter_or_none(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    bare = session.logits(ROWS[0])
    for name, method in MIX.items():
        begin(session, tiny, name, method)
    session.step_many([StepRequest(name, BATCHES[name], SFT, RATES[name]) for name in MIX])
    tuned = {}
    for name in MIX:
        session.activate(name)
        tuned[name] = session.logits(ROWS[0])
        assert np.abs(tuned[name] - bare).max() > 1e-3
    session.activate(None)
    np.testing.assert_array_equal(session.logits(ROWS[0]), bare)
    alone = session.step_many([StepRequest("two", BATCHES["two"], SFT, 0.0)])[0].loss
    session.activate("two")
    scores = np.concatenate([session.score(b) for b in BATCHES["two"]])
    assert alone == pytest.approx(-float(scores.mean()), abs=1e-5)


def test_one_of_several_can_leave_and_the_others_go_on(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    for name in MIX:
        begin(session, tiny, name, MIX[name])
    session.step_many([StepRequest(name, BATCHES[name], SFT, 1e-2) for name in MIX])
    session.detach("一")
    rest = [StepRequest(name, BATCHES[name], SFT, 1e-2) for name in ("two", "three")]
    first = [result.loss for result in session.step_many(rest)]
    assert [result.loss for result in session.step_many(rest)] < first
    session.activate("two")
    assert session.adapters() == ["two", "three"]


@pytest.mark.parametrize("key", list(presets()))
def test_every_method_beside_a_lora_or_told_why_not(backend: Backend, tiny: Path, key: str) -> None:
    spec = make_spec(key, "fp32")
    plan = make_plan(spec, tiny)
    mix = {"一": MIX["一"], "two": {"key": key, **spec.method.settings.model_dump(mode="json")}}
    if tuner_of(plan).sharing_refusal(plan):
        session = backend.load(tiny, "fp32")
        for name, method in mix.items():
            begin(session, tiny, name, method)
        with pytest.raises(Unsupported, match="alone"):
            session.step_many([StepRequest(name, BATCHES[name], SFT, RATES[name]) for name in mix])
        return
    alone, together, _, _ = both_ways(backend, tiny, mix, steps=4, attention=spec.training.attention)
    for name in mix:
        np.testing.assert_allclose(together[name], alone[name], atol=2e-5)
