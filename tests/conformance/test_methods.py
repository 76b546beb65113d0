"""One suite over every backend and every method: what the app relies on when it trains, swaps, saves and merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import MORE_STEPS, ROWS, SFT, Case, batch, log_softmax, make_case
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.backend import Backend
from finetune_local.export.targets.merged import write_merged
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.batch import Batch, Readout
from finetune_local.spec.objectives import Objective
from finetune_local.spec.ops import Ops
from finetune_local.spec.tuners import presets, trainable_parameters, tuner_of

TEXT = list(ROWS[0])
# By hand, for the tiny Llama and rank 4: every block has q, o 64→64, k, v 64→32, gate, up 64→128, down 128→64.
LOW_RANK = 2 * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
MAGNITUDES = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)
WHOLE = 384 * 64 + 2 * (64 * 64 * 2 + 32 * 64 * 2 + 128 * 64 * 3 + 2 * 64) + 64
PARAMETERS = {
    "adalora": LOW_RANK // 4 * 6 + 2 * 7 * 6,  # at its first rank 6, and as many values of E for each of 14 matrices
    "adapter": 2 * 2 * (2 * 64 * 4 + 4 + 64),
    "adapter-pfeiffer": 2 * (2 * 64 * 4 + 4 + 64),
    "bitfit": 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64),
    "dora": LOW_RANK + MAGNITUDES,
    "full": WHOLE,
    "ia3": 2 * (32 + 32 + 128),
    "last-layers": WHOLE - 384 * 64 - 64,
    "longlora": 2 * 4 * (128 + 96 + 96 + 128) + 384 * 64 + 2 * 2 * 64 + 64,
    "lora": LOW_RANK,
    "lora-fa": 2 * 4 * (64 + 32 + 32 + 64 + 128 + 128 + 64),
    "lora-plus": LOW_RANK,
    "lora-drop": 4 * (128 + 192) + 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192),  # two of their own, one for each kind
    "norms": 2 * 2 * 64 + 64,
    "p-tuning": 6 * 64 + 3 * 64 * (64 + 1),
    "parallel-adapter": 2 * (2 * 64 * 4 + 4 + 64),
    "pissa": LOW_RANK,
    "prefix": 5 * 32 + 16 * (32 + 1) + 2 * 2 * 32 * (16 + 1),
    "prompt": 6 * 64,
    "prompt-ensemble": 5 * 6 * 64,
    "qdora": LOW_RANK + MAGNITUDES,
    "qlora": LOW_RANK,
    "vera": 2 * (7 * 4 + 64 + 32 + 32 + 64 + 128 + 128 + 64),
}

EXACTLY = (
    *("adalora", "adapter", "adapter-pfeiffer", "bitfit", "full", "ia3", "last-layers", "longlora"),
    *("lora", "lora-drop", "norms", "lora-fa", "lora-plus", "pissa", "parallel-adapter", "qlora", "vera"),
)
"""Methods whose new adapter changes not a single bit."""


@pytest.fixture(params=list(presets()))
def case(request: pytest.FixtureRequest, backend: Backend, tiny: Path) -> Case:
    """Each method as its name stands for it, with what the backend offers instead where it has a gap."""
    return make_case(backend, request.param, tiny)


@pytest.fixture(params=list(presets()))
def exact(request: pytest.FixtureRequest, backend: Backend, tiny: Path) -> Case:
    """Each method on an fp32 base, where answers can be compared number by number."""
    return make_case(backend, request.param, tiny, precision="fp32")


def test_parameter_count_is_the_formula(case: Case) -> None:
    assert case.attach() == trainable_parameters(case.plan) == PARAMETERS[case.plan.method]


def test_a_new_adapter_changes_nothing(case: Case) -> None:
    before = case.session.logits(TEXT)
    case.attach()
    after = case.session.logits(TEXT)
    if not tuner_of(case.plan).neutral(case.plan):
        assert np.isfinite(after).all() and np.abs(after - before).max() > 0
    elif case.plan.method in EXACTLY:
        np.testing.assert_array_equal(after, before)
    else:
        np.testing.assert_allclose(after, before, atol=2e-5)  # such as DoRA's norm, divided out and multiplied in again


def test_training_falls_and_leaves_the_base_alone(case: Case) -> None:
    base = case.session.logits(TEXT)
    case.attach()
    case.session.prepare("a", case.spec.training)
    steps = MORE_STEPS.get(case.plan.method, 10)
    losses = case.train(steps)
    assert losses[-1] < 0.6 * losses[0], losses
    tuned = case.session.logits(TEXT)
    assert np.abs(tuned - base).max() > 0.1
    case.session.activate(None)
    np.testing.assert_array_equal(case.session.logits(TEXT), base)
    case.session.activate("a")
    np.testing.assert_array_equal(case.session.logits(TEXT), tuned)
    case.session.detach("a")
    assert case.session.adapters() == []
    np.testing.assert_array_equal(case.session.logits(TEXT), base)


def test_every_tensor_is_trained_that_is_not_frozen(case: Case) -> None:
    case.attach()
    before = case.session.tensors("a")
    assert before.keys() == tuner_of(case.plan).shapes(case.plan).keys()
    case.session.prepare("a", case.spec.training)
    case.train(3)
    after = case.session.tensors("a")
    lr_multipliers = tuner_of(case.plan).lr_multipliers(case.plan)
    frozen = {name for name in before if lr_multipliers.get(name, 1.0) == 0}
    assert {name for name in before if np.array_equal(before[name], after[name])} == frozen


def test_two_adapters_live_side_by_side(exact: Case) -> None:
    exact.attach()
    start, lr_multipliers = exact.session.tensors("a"), tuner_of(exact.plan).lr_multipliers(exact.plan)

    def moved(factor: float, by: float) -> dict[str, np.ndarray]:
        trained = {name: value for name, value in start.items() if lr_multipliers.get(name, 1.0)}
        return start | {name: value * np.float32(factor) + np.float32(by) for name, value in trained.items()}

    first, second = moved(1.05, 0.01), moved(0.95, -0.01)
    exact.session.detach("a")
    seen = {}
    for name, tensors in (("first", first), ("second", second)):
        exact.session.attach(name, exact.plan, 1, tensors)
        seen[name] = exact.session.logits(TEXT)
    assert np.abs(seen["first"] - seen["second"]).max() > 1e-3
    for name in ("first", "second", "first"):
        exact.session.activate(name)
        np.testing.assert_array_equal(exact.session.logits(TEXT), seen[name])
    assert set(exact.session.adapters()) == {"first", "second"}


def test_saved_and_read_back_it_answers_the_same(case: Case, tmp_path: Path) -> None:
    case.attach()
    case.session.prepare("a", case.spec.training)
    case.train(3)
    expected, tensors = case.session.logits(TEXT), case.session.tensors("a")
    folded = tuner_of(case.plan).fold(case.plan, tensors)
    for name, (given, values) in {"checkpoint": (case.plan, tensors), "adapter": folded}.items():
        write_adapter(tmp_path / name, given, values, "tiny")
        plan, read = read_adapter(tmp_path / name)
        assert read.keys() == values.keys()
        for key in values:
            np.testing.assert_array_equal(read[key], values[key], err_msg=key)
        other = case.reload()
        other.attach("b", plan, 99, read)
        np.testing.assert_allclose(other.logits(TEXT), expected, atol=2e-5, err_msg=name)


def test_merged_weights_answer_as_the_adapter(exact: Case, tmp_path: Path) -> None:
    exact.attach()
    exact.session.prepare("a", exact.spec.training)
    exact.train(5)
    tuner = tuner_of(exact.plan)
    if reason := tuner.merge_refusal(exact.plan):
        assert reason.endswith(".") and len(reason) > 40, "the reason is a sentence, and says what to do"
        return
    expected = exact.session.logits(TEXT)
    plan, tensors = tuner.fold(exact.plan, exact.session.tensors("a"))
    write_adapter(tmp_path / "adapter", plan, tensors, "tiny")
    write_merged(ModelFolder.open(exact.folder), tmp_path / "adapter", tmp_path / "merged", "float32")
    found = exact.backend.load(tmp_path / "merged", "fp32").logits(TEXT)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_score_is_the_logits_softmax_at_supervised_places(exact: Case) -> None:
    if tuner_of(exact.plan).virtual_ids(exact.plan).ensemble_size > 1:
        return  # scores are the mean over prompts, logits those of the first: the family's own tests compare them
    exact.attach({name: value + np.float32(0.01) for name, value in _fresh(exact).items()})
    rows = batch()
    expected = [
        log_softmax(exact.session.logits(row))[place - 1, row[place]]
        for row, mask in zip(ROWS, rows.mask, strict=True)
        for place in np.flatnonzero(mask)
    ]
    np.testing.assert_allclose(exact.session.score(rows), expected, atol=1e-4)


def test_micro_batches_add_up_to_the_whole(exact: Case) -> None:
    parts = [batch(ROWS[:1]), batch(ROWS[1:2], prompt=1), batch(ROWS[2:])]
    whole_rows = batch()
    mask = whole_rows.mask.copy()
    mask[1] = np.arange(mask.shape[1]) >= 1
    mask[1] &= np.arange(mask.shape[1]) < len(ROWS[1])
    whole = [type(whole_rows)(whole_rows.ids, whole_rows.lengths, mask)]
    results = []
    for batches in (whole, parts):
        session = exact.reload()
        session.attach("a", exact.plan, 1)
        session.prepare("a", exact.spec.training)
        done = [session.step(batches, SFT, 1e-3) for _ in range(3)]
        results.append((done, session.tensors("a")))
    (one, tensors), (other, same) = results
    np.testing.assert_allclose([r.loss for r in one], [r.loss for r in other], rtol=1e-5)
    np.testing.assert_allclose([r.gradient_norm for r in one], [r.gradient_norm for r in other], rtol=1e-3)
    for name in tensors:
        np.testing.assert_allclose(same[name], tensors[name], atol=2e-4, err_msg=name)


def test_optimizer_state_carries_over(exact: Case) -> None:
    exact.attach()
    exact.session.prepare("a", exact.spec.training)
    exact.train(4)
    state, tensors = exact.session.optimizer_state(), exact.session.tensors("a")
    state = {name: np.array(value) for name, value in state.items()}
    expected = exact.train(4, first=4)
    other = exact.reload()
    other.attach("a", exact.plan, 1, tensors)
    other.prepare("a", exact.spec.training)
    other.restore_optimizer(state)
    np.testing.assert_allclose(exact.train(4, session=other, first=4), expected, rtol=1e-6)
    for name, value in exact.session.tensors("a").items():
        np.testing.assert_allclose(other.tensors("a")[name], value, atol=1e-6, err_msg=name)


def test_checkpointing_changes_no_number(backend: Backend, tiny: Path) -> None:
    curves = []
    for wanted in (False, True):
        case = make_case(backend, "lora", tiny, precision="fp32", gradient_checkpointing=wanted)
        case.attach()
        case.session.prepare("a", case.spec.training)
        curves.append(case.train(5))
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)


class Poisoned(Objective):
    """An objective whose loss is not a number."""

    key = title = "poisoned"

    def loss(self, ops: Ops, readout: Readout, batch: Batch, total: float) -> Any:
        return ops.sum(readout.logprobs) * float("nan")


def test_a_step_that_is_not_finite_is_told_and_not_applied(exact: Case) -> None:
    exact.attach()
    exact.session.prepare("a", exact.spec.training)
    exact.train(2)
    before = exact.session.tensors("a")
    result = exact.session.step([batch()], Poisoned(), 1e-2)
    assert not np.isfinite(result.loss) or not np.isfinite(result.gradient_norm)
    for key, value in exact.session.tensors("a").items():
        np.testing.assert_array_equal(value, before[key], err_msg=key)
    assert exact.train(1)[0] < 10


def _fresh(case: Case) -> dict[str, np.ndarray]:
    """The tensors an adapter begins with."""
    session = case.reload()
    session.attach("fresh", case.plan, 1)
    return session.tensors("fresh")
