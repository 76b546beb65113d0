"""What objectives get beside log-probabilities: the reference's, and values of a scalar head, on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import ROWS, SFT, batch, gradients_of, make_plan, make_spec
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.backend import Backend, Session, StepRequest, backends
from finetune_local.spec.batch import Batch, Readout, ValueKind
from finetune_local.spec.objectives import Objective
from finetune_local.spec.ops import NUMPY, Ops
from finetune_local.spec.value_head import VALUE_HEAD, folded
from finetune_local.system.errors import AdapterError
from tasks import batch_of


class Preference(Objective):
    """Pairs of rows, the first of which is preferred to the second, by log-probabilities against the reference."""

    key = title = "preference"
    needs = frozenset({"reference"})

    def count(self, batch: Batch) -> int:
        return batch.examples

    def loss(self, ops: Ops, readout: Readout, batch: Batch, total: float) -> Any:
        assert batch.reference is not None
        gained = readout.logprobs - ops.array(batch.reference)
        rows = ops.segment_sum(gained, batch.token_rows, len(batch.ids)) * ops.array(batch.weight)
        margins = ops.segment_sum(rows, batch.row_groups, batch.examples)
        return -ops.sum(ops.log_sigmoid(0.5 * margins)) / total


class Reward(Objective):
    """Pairs of rows by the values at their ends."""

    key = title = "reward"
    needs = frozenset({"row values"})

    def count(self, batch: Batch) -> int:
        return batch.examples

    def loss(self, ops: Ops, readout: Readout, batch: Batch, total: float) -> Any:
        margins = ops.segment_sum(readout.values * ops.array(batch.weight), batch.row_groups, batch.examples)
        return -ops.sum(ops.log_sigmoid(margins)) / total


class Critic(Objective):
    """Values of tokens against a number that follows from the row, beside the tokens' own likelihood."""

    key = title = "critic"
    needs = frozenset({"token values"})

    def loss(self, ops: Ops, readout: Readout, batch: Batch, total: float) -> Any:
        aim = ops.array(np.where(batch.token_rows % 2, 1.0, -1.0).astype(np.float32))
        return ops.sum(ops.square(readout.values - aim) - 0.1 * readout.logprobs) / total


PREFERENCE, REWARD, CRITIC = Preference(), Reward(), Critic()
VALUES: dict[str, tuple[Objective, ValueKind]] = {"reward": (REWARD, "row values"), "critic": (CRITIC, "token values")}


def pairs(seed: int = 0) -> Batch:
    """Two pairs of rows, whose groups are not in order."""
    plain = batch_of(4, 20, seed)
    return Batch(
        plain.ids, plain.lengths, plain.mask, np.array([7, 3, 7, 3], np.int32), np.array([1, 1, -1, -1], np.float32)
    )


def begin(backend: Backend, folder: Path, head: bool, method: str = "lora", **training: Any) -> Session:
    session = backend.load(folder, "fp32")
    spec = make_spec(method, **training)
    session.attach("a", make_plan(spec, folder), 1, value_head=head)
    session.prepare("a", spec.training)
    return session


def test_the_reference_is_the_base_with_the_adapter_off(backend: Backend, tiny: Path) -> None:
    session = begin(backend, tiny, head=False)
    bare = backend.load(tiny, "fp32").score(batch())
    session.step([batch()], SFT, 1e-2)
    np.testing.assert_array_equal(session.score(batch(), reference=True), bare)
    tuned = session.score(batch())
    assert np.abs(tuned - bare).max() > 1e-3
    session.activate(None)
    np.testing.assert_array_equal(session.score(batch(), reference=True), bare)


def test_a_step_computes_the_reference_it_is_not_given(backend: Backend, tiny: Path) -> None:
    """And takes the one it is given; its loss is what numpy makes of the scores before it."""
    ours, given = begin(backend, tiny, head=False), begin(backend, tiny, head=False)
    batches = [pairs(), pairs(1)]
    reference = [Batch(b.ids, b.lengths, b.mask, b.group, b.weight, ours.score(b, reference=True)) for b in batches]
    for number in range(3):
        expected = sum(
            float(PREFERENCE.loss(NUMPY, Readout(ours.score(b).astype(np.float64)), b, 4.0)) for b in reference
        )
        loss = ours.step(batches, PREFERENCE, 1e-2).loss
        assert loss == pytest.approx(expected, abs=1e-5)
        assert given.step(reference, PREFERENCE, 1e-2).loss == loss
        if not number:
            assert loss == pytest.approx(np.log(2), abs=1e-6)  # a new adapter is the base
    assert loss < 0.68


def test_pieces_of_a_step_learn_as_the_whole(backend: Backend, tiny: Path) -> None:
    whole, pieces = begin(backend, tiny, head=False), begin(backend, tiny, head=False)
    four = pairs()
    first, second = np.array([0, 2]), np.array([1, 3])
    halves = [Batch(four.ids[r], four.lengths[r], four.mask[r], four.group[r], four.weight[r]) for r in (first, second)]
    for _ in range(4):
        one, other = whole.step([four], PREFERENCE, 1e-2), pieces.step(halves, PREFERENCE, 1e-2)
        assert one.loss == pytest.approx(other.loss, abs=1e-6)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


@pytest.mark.parametrize("kind", list(VALUES))
def test_a_value_head_is_trained_kept_and_restored(backend: Backend, tiny: Path, kind: str) -> None:
    objective, values = VALUES[kind]
    session = begin(backend, tiny, head=True)
    plain = backend.load(tiny, "fp32")
    count = plain.attach("a", make_plan(make_spec("lora"), tiny), 1)
    assert session.tensors("a")[VALUE_HEAD].shape == (1, 64)
    with pytest.raises(AdapterError, match="no adapter with a value head"):
        plain.values(batch(), values)
    losses = [session.step([pairs()], objective, 1e-2).loss for _ in range(6)]
    assert losses[-1] < losses[0] - 0.05
    shown, tensors, state = session.values(pairs(), values), session.tensors("a"), session.optimizer_state()
    assert shown.shape == ((4,) if values == "row values" else (pairs().supervised,))
    again = backend.load(tiny, "fp32")
    spec = make_spec("lora")
    assert again.attach("b", make_plan(spec, tiny), 9, tensors) == count + 64
    again.prepare("b", spec.training)
    again.restore_optimizer(state)
    np.testing.assert_array_equal(again.values(pairs(), values), shown)
    assert again.step([pairs()], objective, 1e-2) == session.step([pairs()], objective, 1e-2)
    wrong = {**tensors, VALUE_HEAD: np.zeros((1, 63), np.float32)}
    with pytest.raises(AdapterError, match=r"value_head.weight has shape \(1, 63\)"):
        again.attach("c", make_plan(spec, tiny), 1, wrong)


@pytest.mark.parametrize("method", ["lora", "full", "prompt-ensemble"])
@pytest.mark.parametrize("kind", list(VALUES))
def test_values_have_the_slopes_of_the_loss(backend: Backend, tiny: Path, kind: str, method: str) -> None:
    objective, _ = VALUES[kind]
    session = begin(backend, tiny, head=True, method=method)
    ensemble = session.ensemble_size
    for _ in range(2):
        session.step([pairs()], objective, 1e-3)
    tensors, gradients = session.tensors("a"), gradients_of(session, pairs(), objective)
    plan = make_plan(make_spec(method), tiny)
    name = max((n for n in gradients if n != VALUE_HEAD), key=lambda n: float(np.linalg.norm(gradients[n])))
    for moved in (VALUE_HEAD, name):
        ends = []
        direction = gradients[moved] / np.linalg.norm(gradients[moved])
        for sign in (1, -1):
            session.attach(
                "moved", plan, 1, {**tensors, moved: (tensors[moved] + sign * 1e-2 * direction).astype(np.float32)}
            )
            session.prepare("moved", make_spec(method).training)
            ends.append(session.step_many([StepRequest("moved", [pairs()], objective, 0.0)])[0].loss)
            session.detach("moved")
        slope = float((gradients[moved] * direction).sum())
        assert slope == pytest.approx(ensemble * (ends[0] - ends[1]) / 2e-2, rel=0.03, abs=1e-4), moved


def test_adapters_with_and_without_a_head_share_a_pass(backend: Backend, tiny: Path) -> None:
    alone, beside = [begin(backend, tiny, head=True) for _ in range(2)]
    spec = make_spec("lora")
    beside.attach("plain", make_plan(spec, tiny), 2)
    beside.prepare("plain", spec.training)
    for _ in range(3):
        requests = [StepRequest("plain", [batch(ROWS)], SFT, 1e-2), StepRequest("a", [pairs()], REWARD, 1e-2)]
        assert beside.step_many(requests)[1].loss == pytest.approx(
            alone.step_many([StepRequest("a", [pairs()], REWARD, 1e-2)])[0].loss, abs=1e-5
        )
    beside.activate("a")
    np.testing.assert_allclose(beside.values(pairs(), "row values"), alone.values(pairs(), "row values"), atol=1e-4)


@pytest.mark.parametrize("objective", [PREFERENCE, REWARD, CRITIC], ids=lambda objective: objective.key)
def test_one_curve_on_both_backends(tiny: Path, objective: Objective) -> None:
    if lacking := [name for name, backend in backends().items() if backend.missing()]:
        pytest.skip(f"needs both backends; missing: {', '.join(lacking)}")
    curves = []
    for name in ("torch", "mlx"):
        session = begin(backends()[name], tiny, head=objective is not PREFERENCE)
        curves.append([session.step([pairs(step)], objective, 1e-2).loss for step in range(20)])
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-3)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_head_lies_in_the_adapters_file_and_peft_ignores_it(backend: Backend, tiny: Path, tmp_path: Path) -> None:
    session = begin(backend, tiny, head=True)
    session.step([pairs()], REWARD, 1e-2)
    plan, tensors = make_plan(make_spec("lora"), tiny), session.tensors("a")
    new_plan, new = folded(plan, tensors)
    write_adapter(tmp_path / "adapter", new_plan, new, "base")
    read, found = read_adapter(tmp_path / "adapter")
    assert read.tuner == plan.tuner and found.keys() == tensors.keys()
    np.testing.assert_array_equal(found[VALUE_HEAD], tensors[VALUE_HEAD])
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    import torch

    with torch.no_grad():
        logits = theirs(torch.tensor([ROWS[0]])).logits[0].numpy()
    np.testing.assert_allclose(session.logits(ROWS[0]), logits, atol=1e-4)
