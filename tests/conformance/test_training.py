"""The loop on every backend: what it writes, how it is stopped and resumed, and what it does when things go wrong."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import small
from finetune_local.adapter_format import read_adapter
from finetune_local.adapters.identity import read_identity
from finetune_local.backend import Backend, StepRequest, StepResult
from finetune_local.spec.tuners import presets
from finetune_local.system.errors import AdapterError, DiskFull, OutOfMemory, SpecError, TrainingDiverged
from finetune_local.system.paths import Home
from finetune_local.training import check
from finetune_local.training.checkpoints import checkpoint
from finetune_local.training.events import Finished, Note, Sample, StoppedByUser, Validation
from finetune_local.training.setup import Ready
from tiny import tiny_model
from training import STEPS, assert_same, losses, result, train


def test_a_run_from_data_to_adapter(make_run: Any, home: Home, backend: Backend) -> None:
    run = make_run("whole", sample_rows=2)
    events = train(run, home)
    curve = losses(events)
    assert list(curve) == list(range(1, STEPS + 1))
    assert curve[STEPS] < curve[1] - 0.2
    validations = [e.loss for e in events if isinstance(e, Validation)]
    assert len(validations) == 3
    assert validations[-1] < validations[0]
    samples = [e for e in events if isinstance(e, Sample)]
    assert len(samples) == 6
    assert all(s.reference.startswith("好") for s in samples)
    finished = events[-1]
    assert isinstance(finished, Finished)
    summary = finished.summary
    assert summary["steps"] == STEPS
    assert summary["first_loss"] == curve[1]
    assert summary["backend"] == backend.name
    _, tensors = read_adapter(run.adapter)
    assert sum(t.size for t in tensors.values()) == summary["trainable_parameters"]
    assert any(np.abs(t).max() > 0 for name, t in tensors.items() if "lora_B" in name)
    identity = read_identity(run.adapter)
    assert identity is not None
    assert identity.run == "whole"
    # The newest two checkpoints and the best one are kept.
    assert len(list(run.checkpoints.iterdir())) <= 3
    assert checkpoint.latest(run.checkpoints) == run.checkpoints / f"step-{STEPS:06d}"


EVERY_METHOD = [{"key": key, **small(key)} for key in presets()]


@pytest.mark.parametrize("method", [*EVERY_METHOD, {"key": "dora", "dropout": 0.1}], ids=[*presets(), "dora-dropout"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(make_run: Any, home: Home, method: Any) -> None:
    whole = make_run("whole", method)
    expected = losses(train(whole, home))
    parts = make_run("parts", method)
    asked = iter([False, False, False, False, False, True])  # asked before the first step too
    first = train(parts, home, lambda: next(asked))
    assert isinstance(first[-1], StoppedByUser)
    assert first[-1].step == 5
    assert parts.adapter.exists()
    assert parts.status() == "paused"
    assert all(np.isfinite(tensor).all() for tensor in result(parts).values())
    second = train(parts, home)
    found = losses(first) | losses(second)
    assert found.keys() == expected.keys()
    assert max(abs(found[s] - expected[s]) for s in expected) <= 1e-6
    assert_same(result(parts), result(whole))
    one, other = (checkpoint.load(r.checkpoints / f"step-{STEPS:06d}").state for r in (whole, parts))
    uncertain = {"seconds", "cpu_seconds", "peak_memory_bytes"}
    as_dict = [{k: v for k, v in dataclasses.asdict(s).items() if k not in uncertain} for s in (one, other)]
    assert as_dict[0] == as_dict[1]


def test_the_micro_batch_does_not_change_the_result(make_run: Any, home: Home) -> None:
    curves = [losses(train(make_run(f"m{n}", micro_batch_tokens=n), home)) for n in (16, 512)]
    assert max(abs(curves[0][s] - curves[1][s]) for s in curves[0]) < 2e-5


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(make_run: Any, home: Home) -> None:
    expected = losses(train(make_run("calm"), home))
    refused = []

    def scarce(ready: Ready) -> None:
        original = ready.session.step_many

        def step(requests: Sequence[StepRequest]) -> list[StepResult]:
            if max(batch.ids.size for batch in requests[0].batches) > 48:
                refused.append(len(requests[0].batches))
                raise OutOfMemory("no space")
            return original(requests)

        ready.session.step_many = step  # type: ignore[method-assign]

    run = make_run("scarce")
    events = train(run, home, change=scarce)
    found = losses(events)
    assert refused
    assert any(isinstance(e, Note) and "out of memory" in e.text for e in events)
    assert max(abs(found[s] - expected[s]) for s in expected) < 2e-5
    assert checkpoint.load(run.checkpoints / f"step-{STEPS:06d}").state.micro_batch_tokens < 128


def test_a_validation_that_does_not_fit_is_halved_too(make_run: Any, home: Home) -> None:
    expected = [e.loss for e in train(make_run("calm"), home) if isinstance(e, Validation)]

    def scarce(ready: Ready) -> None:
        original = ready.session.score

        def score(batch: Any) -> Any:
            if batch.ids.size > 48:
                raise OutOfMemory("no space")
            return original(batch)

        ready.session.score = score  # type: ignore[method-assign]

    events = train(make_run("scarce"), home, change=scarce)
    notes = [e for e in events if isinstance(e, Note) and "out of memory" in e.text]
    assert len(notes) == 2  # from 128 to 64 to 32, and it stays there
    found = [e.loss for e in events if isinstance(e, Validation)]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_budget_that_no_batch_reaches_is_not_halved_in_vain(make_run: Any, home: Home) -> None:
    tried: list[list[int]] = []

    def scarce(ready: Ready) -> None:
        original = ready.session.step_many

        def step(requests: Sequence[StepRequest]) -> list[StepResult]:
            tried.append([batch.ids.size for batch in requests[0].batches])
            if len(tried) <= 2:
                raise OutOfMemory("no space")
            return original(requests)

        ready.session.step_many = step  # type: ignore[method-assign]

    train(make_run("wide", micro_batch_tokens=100_000, max_steps=2), home, change=scarce)
    assert max(tried[2]) < max(tried[1]) < max(tried[0])


def test_a_stop_during_the_preparation_does_not_wait_for_a_step(make_run: Any, home: Home) -> None:
    events = train(make_run("early"), home, lambda: True)
    assert [e.kind for e in events] == ["started", "stopped"]
    assert events[-1].as_json()["step"] == 0


def test_a_validation_loss_that_is_no_number_stops_the_run(make_run: Any, home: Home) -> None:
    def poison(ready: Ready) -> None:
        original = ready.session.score

        def score(batch: Any) -> Any:
            return original(batch) * (np.float32("nan") if ready.state.step else np.float32(1))

        ready.session.score = score  # type: ignore[method-assign]

    run = make_run("nan-validation")
    with pytest.raises(TrainingDiverged, match=r"validation loss after step 6 is nan.*step-000003.*--learning-rate"):
        train(run, home, change=poison)
    assert checkpoint.latest(run.checkpoints) == run.checkpoints / "step-000003"


def test_a_prompt_that_cannot_be_asked_ends_no_training(make_run: Any, home: Home, data: Path) -> None:
    rows = [{"messages": [{"role": "assistant", "content": f"只有 an answer {i}"}]} for i in range(20)]
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    events = train(make_run("answers-only", sample_rows=3, max_steps=2), home)
    assert isinstance(events[-1], Finished)
    assert not any(isinstance(e, Sample) for e in events)


def test_a_run_that_never_beats_its_base_says_so(make_run: Any, home: Home) -> None:
    def spoil(ready: Ready) -> None:
        original = ready.session.score
        ready.session.score = lambda b: original(b) - np.float32(9 if ready.state.step else 0)  # type: ignore[method-assign]

    events = train(make_run("worse", max_steps=4, validate_every=2), home, change=spoil)
    assert any(isinstance(e, Note) and "never fell below that of the base" in e.text for e in events)


def test_a_single_row_that_does_not_fit_says_what_helps(make_run: Any, home: Home) -> None:
    def none(ready: Ready) -> None:
        def step(_: Sequence[StepRequest]) -> list[StepResult]:
            raise OutOfMemory("no space")

        ready.session.step_many = step  # type: ignore[method-assign]

    with pytest.raises(OutOfMemory, match=r"one row of \d+ tokens.*--max-length"):
        train(make_run("none"), home, change=none)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(make_run: Any, home: Home, bad: float) -> None:
    def poison(ready: Ready) -> None:
        original = ready.session.step_many

        def step(requests: Sequence[StepRequest]) -> list[StepResult]:
            (done,) = original(requests)
            return [dataclasses.replace(done, loss=bad) if ready.state.step == 4 else done]

        ready.session.step_many = step  # type: ignore[method-assign]

    run = make_run("nan")
    with pytest.raises(TrainingDiverged, match=r"step 5.*not applied.*step-000003.*--learning-rate"):
        train(run, home, change=poison)
    assert checkpoint.latest(run.checkpoints) == run.checkpoints / "step-000003"


def test_a_loss_that_climbs_and_stays_up_is_caught(make_run: Any, home: Home) -> None:
    def climb(ready: Ready) -> None:
        original = ready.session.step_many

        def step(requests: Sequence[StepRequest]) -> list[StepResult]:
            (done,) = original(requests)
            return [dataclasses.replace(done, loss=done.loss + 0.5 * ready.state.step)]

        ready.session.step_many = step  # type: ignore[method-assign]

    with pytest.raises(TrainingDiverged, match=r"has risen from .* --learning-rate"):
        train(make_run("wild", max_steps=60), home, change=climb)


def test_early_stopping_keeps_the_best(make_run: Any, home: Home) -> None:
    run = make_run("early", validate_every=1, early_stopping=2, learning_rate=0.3, schedule="constant", max_steps=40)
    events = train(run, home)
    last = events[-1]
    assert isinstance(last, Finished)
    assert "no better validation loss" in last.reason
    assert last.summary["steps"] < 40
    curve = {e.step: e.loss for e in events if isinstance(e, Validation)}
    best = min((s for s in curve if s), key=curve.__getitem__)
    if curve[best] < curve[0]:
        assert_same(result(run), read_adapter(run.checkpoints / f"step-{best:06d}")[1])


def test_early_stopping_needs_held_out_rows(make_run: Any, home: Home, data: Path) -> None:
    run = make_run("blind", early_stopping=2)
    data.write_text(data.read_text("utf-8").splitlines(keepends=True)[0], "utf-8")  # one row: none can be held out
    with pytest.raises(SpecError, match="--early-stopping"):
        train(run, home)


def test_a_file_as_model_is_named_so_that_it_is_found_later(
    make_run: Any, home: Home, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GGUF is copied into the home once; from then on the copy is what the run names."""
    from finetune_local.models import resolve
    from finetune_local.models.folder import ModelFolder

    shutil.copytree(tiny, home.models / "copied")
    (tmp_path / "small.gguf").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(resolve, "resolve", lambda *_: ModelFolder.open(home.models / "copied", "copied"))
    spec = make_run("any").spec
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"id": "small.gguf"})})
    assert check.check_before_loading(spec, home, lambda *_: None)[0].model.id == "copied"


def test_a_run_is_not_resumed_on_another_base(make_run: Any, home: Home, tmp_path: Path) -> None:
    run = make_run("rebased")
    asked = iter([False, False, True])
    train(run, home, lambda: next(asked))
    other = tiny_model(tmp_path / "other", vocab=400)
    spec = run.spec
    run.write_spec(spec.model_copy(update={"model": spec.model.model_copy(update={"id": str(other)})}))
    with pytest.raises(AdapterError, match="differs"):
        train(run, home)


def test_a_full_disk_stops_with_the_last_checkpoint_intact(
    make_run: Any, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("full-disk")
    original = os.fsync
    saved: list[str] = []

    def fsync(descriptor: int) -> None:
        if len(saved) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    def watch() -> bool:
        saved[:] = sorted(p.name for p in run.checkpoints.glob("step-*"))
        return False

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFull, match="resume"):
        train(run, home, watch)
    monkeypatch.undo()
    assert sorted(p.name for p in run.checkpoints.iterdir()) == saved
    events = train(run, home)
    assert isinstance(events[-1], Finished)
