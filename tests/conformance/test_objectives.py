"""Objectives beside supervised fine-tuning: they train, resume as unbroken, and run alike on both backends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conforming import small
from conftest import USABLE
from finetune_local.backend import Backend, backends
from finetune_local.data.dataset.store import Dataset
from finetune_local.models.folder import ModelFolder
from finetune_local.models.memory.estimate import estimate
from finetune_local.spec.batch import Batch
from finetune_local.spec.run import as_tables, parse_spec
from finetune_local.spec.tuners import presets, tuner_of
from finetune_local.system.errors import DataError
from finetune_local.system.paths import Home
from finetune_local.training import check
from finetune_local.training.events import Event, Step, Validation
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.forecast import Pace, Work, facts_of_prepared, forecast
from finetune_local_backends.session_base import SessionBase
from training import assert_same, losses, ready_of, result, train

STEPS = 20
OBJECTIVES: dict[str, dict[str, Any]] = {"dpo": {"key": "dpo", "beta": 0.5}, "cpt": {"key": "cpt"}}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Data by the objective that learns from it."""
    pairs = [
        {
            "prompt": f"say {i}",
            "chosen": f"好 {i % 5} ok" + " yes" * (i % 3),
            "rejected": f"no {i % 7}" + " never" * (i % 4),
        }
        for i in range(40)
    ]
    texts = [" ".join(f"word {(i * j) % 11}," for j in range(3 + 4 * (i % 5))) for i in range(40)]
    found = {"dpo": tmp_path / "pairs.json", "cpt": tmp_path / "文本 texts.jsonl"}
    found["dpo"].write_text(json.dumps(pairs, ensure_ascii=False), "utf-8")
    found["cpt"].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return found


@pytest.fixture
def make(home: Home, tiny: Path, files: dict[str, Path]) -> Callable[..., runs.Run]:
    def made(
        name: str,
        backend: str,
        key: str,
        data: str = "",
        steps: int = STEPS,
        method: dict[str, Any] | None = None,
        **objective: Any,
    ) -> runs.Run:
        tables = {
            "name": name,
            "backend": backend,
            "model": {"id": str(tiny), "precision": "fp32"},
            "data": {"files": [str(files[data or key])], "validation": 0.2, "max_length": 64},
            "method": method or {"key": "lora", "rank": 4},
            "objective": {**OBJECTIVES[key], **objective},
            "training": {"max_steps": steps, "batch_size": 4, "learning_rate": 5e-3, "validate_every": 10,
                         "checkpoint_every": 4, "sample_rows": 1, "sample_tokens": 4, "micro_batch_tokens": 128},
        }  # fmt: skip
        spec, _ = check.check_before_loading(parse_spec(tables, "test"), home, lambda *_: None)
        return runs.create(home, spec)

    return made


def validations(events: list[Event]) -> list[Validation]:
    return [event for event in events if isinstance(event, Validation)]


def test_cpt_learns_every_token(make: Callable[..., runs.Run], home: Home, backend: Backend) -> None:
    run = make("texts", backend.name, "cpt")
    events = train(run, home)
    first, *_, last = validations(events)
    assert last.loss < first.loss and last.metrics["bits_per_token"] == pytest.approx(last.loss / math.log(2))
    row = ready_of(run, home).data.train.row(0)
    assert row.mask.tolist() == [False] + [True] * (len(row.ids) - 1)
    assert as_tables(run.spec)["objective"] == "cpt"


def test_dpo_learns_which_answer_is_better(make: Callable[..., runs.Run], home: Home, backend: Backend) -> None:
    run = make("pairs", backend.name, "dpo")
    events = train(run, home)
    first, *_, last = validations(events)
    assert next(e for e in events if isinstance(e, Step)).loss == pytest.approx(math.log(2), abs=1e-5)
    assert first.loss == pytest.approx(math.log(2), abs=1e-5) and first.metrics["margin"] == pytest.approx(0, abs=1e-5)
    assert last.loss < 0.5 and last.metrics["accuracy"] > 0.8
    assert last.metrics["margin"] == pytest.approx(
        last.metrics["chosen_reward"] - last.metrics["rejected_reward"], abs=1e-5
    )
    assert as_tables(run.spec)["objective"] == {"key": "dpo", "cache_reference": False, "beta": 0.5}
    written = [json.loads(line) for line in run.events_file.read_text("utf-8").splitlines()]
    assert any("accuracy" in line.get("metrics", {}) for line in written)


@pytest.mark.parametrize("key", list(OBJECTIVES))
def test_a_stopped_run_resumes_as_unbroken(
    make: Callable[..., runs.Run], home: Home, backend: Backend, key: str
) -> None:
    whole, broken = make("whole", backend.name, key, steps=8), make("broken", backend.name, key, steps=8)
    curve = losses(train(whole, home))
    steps = iter(range(99))
    before = losses(train(broken, home, lambda: next(steps) > 3))
    after = losses(train(broken, home))
    assert before.keys() and after.keys() and before | after == curve
    assert_same(result(whole), result(broken))


@pytest.mark.parametrize("key", list(OBJECTIVES))
def test_both_backends_draw_one_curve(make: Callable[..., runs.Run], home: Home, key: str) -> None:
    if lacking := [b.name for b in backends().values() if b.missing()]:
        pytest.skip(f"parity needs both backends; missing: {', '.join(lacking)}")
    one, other = (losses(train(make(name, name, key), home)) for name in ("torch", "mlx"))
    assert len(one) == STEPS and one[STEPS] < one[1]
    assert max(abs(one[step] - other[step]) for step in one) < 1e-3


def test_a_kept_reference_changes_nothing_and_is_made_once(
    make: Callable[..., runs.Run], home: Home, backend: Backend
) -> None:
    computed, kept = (
        make("computed", backend.name, "dpo", steps=6),
        make("kept", backend.name, "dpo", steps=6, cache_reference=True),
    )
    curve, same = losses(train(computed, home)), losses(train(kept, home))
    assert max(abs(curve[step] - same[step]) for step in curve) < 1e-4
    files = sorted(path.name for path in (kept.data / "reference").iterdir())
    assert (
        files == ["SHA256SUMS", "train.logprobs", "validation.logprobs"] and not (computed.data / "reference").exists()
    )
    ready = ready_of(kept, home)
    assert ready.data.train.row(0).reference is not None
    (kept.data / "reference" / "train.logprobs").write_bytes(b"damaged!")
    again = ready_of(kept, home).data.train.row(0).reference
    assert again is not None and again.tolist() == ready.data.train.row(0).reference.tolist()


@pytest.mark.parametrize(
    ("key", "data", "words"), [("dpo", "cpt", "learns from pairs of a chosen"), ("cpt", "dpo", "--objective dpo")]
)
def test_data_of_another_kind_is_refused_with_what_to_do(
    make: Callable[..., runs.Run], home: Home, backend: Backend, key: str, data: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        ready_of(make("wrong", backend.name, key, data), home)


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("method", list(presets()))
def test_every_method_trains_with_every_objective(
    make: Callable[..., runs.Run], home: Home, method: str, objective: str
) -> None:
    """Three steps on each backend: finite, alike, and from log 2 on where the reference is the new adapter's own base."""
    curves = {}
    for name in backends():
        run = make(f"{method} {name}", name, objective, steps=3, method={"key": method, **small(method)})
        curves[name] = losses(train(run, home))
        assert len(curves[name]) == 3 and all(math.isfinite(loss) for loss in curves[name].values())
        spec = run.spec
        ready = ready_of(run, home)
        if objective == "dpo" and tuner_of(ready.plan).neutral(ready.plan) and not spec.training.neftune_alpha:
            assert curves[name][1] == pytest.approx(math.log(2), abs=1e-4)
    if {"torch", "mlx"} <= curves.keys():
        assert list(curves["torch"].values()) == pytest.approx(list(curves["mlx"].values()), abs=1e-3)


def test_a_kept_reference_has_the_attention_of_training(
    make: Callable[..., runs.Run], home: Home, backend: Backend
) -> None:
    method = {"key": "longlora", "rank": 4}
    kept = make("kept", backend.name, "dpo", steps=3, method=method, cache_reference=True)
    computed = make("computed", backend.name, "dpo", steps=3, method=method)
    assert losses(train(kept, home)) == pytest.approx(losses(train(computed, home)), abs=1e-5)


@pytest.mark.parametrize("cached", [False, True])
def test_the_forecast_is_what_is_computed(
    make: Callable[..., runs.Run], home: Home, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """Rows, tokens of forward passes and the largest micro-batch of a run, against its forecast."""
    steps, batch_size = 16, 4  # two epochs of 32 pairs
    run = make("counted", USABLE[0], "dpo", steps=steps, cache_reference=cached)
    spec = run.spec
    training = spec.training.model_copy(update={"validate_every": steps, "micro_batch_tokens": 16})
    spec = spec.model_copy(update={"training": training})
    run.write_spec(spec)
    stepped: list[Batch] = []
    scored: list[Batch] = []
    stepping = [cached]
    step_many, score = SessionBase.step_many, SessionBase.score

    def counted_steps(self: Any, requests: Any) -> Any:
        stepped.extend(batch for request in requests for batch in request.batches)
        stepping[0] = True
        try:
            return step_many(self, requests)
        finally:
            stepping[0] = False  # what validation scores is not of a step

    def counted_scores(self: Any, batch: Batch, reference: bool = False, group: int = 0) -> Any:
        if reference and stepping[0]:
            scored.append(batch)
        return score(self, batch, reference, group)

    monkeypatch.setattr(SessionBase, "step_many", counted_steps)
    monkeypatch.setattr(SessionBase, "score", counted_scores)
    train(run, home)
    works: list[Work] = []

    def pace_of(work: Work, _fast: bool) -> Pace:
        works.append(work)
        return Pace(100.0, "same")

    model = ModelFolder.open(Path(spec.model.id))
    device = backends()[USABLE[0]].devices()[0]
    data = facts_of_prepared(run.data)
    found = forecast(as_tables(spec), device, lambda _spec: model, data, pace_of)
    assert data is not None and found.seconds is not None and found.memory is not None
    objective = spec.objective.objective
    assert sum(len(batch.ids) for batch in stepped) == steps * batch_size * objective.rows
    passes = [4 * sum(batch.tokens for batch in stepped), 2 * sum(batch.tokens for batch in scored)]
    assert len(scored) >= (len(data_rows(run)) if cached else len(stepped)) // 4
    predicted = found.seconds * 100.0 * works[0].operations / model.parameters
    assert predicted == pytest.approx(sum(passes), rel=0.1) and predicted > 1.05 * passes[0]
    assert works[0].reference is not cached
    largest = max(batch.ids.size for batch in stepped)
    assert 16 < largest <= objective.rows * data.longest <= 1.2 * largest
    exact = training.model_copy(update={"micro_batch_tokens": objective.rows * data.longest})
    plan = check.plan_for(spec, model)
    assert found.memory == estimate(model, spec.model_copy(update={"training": exact}), plan, device.kind)


def data_rows(run: runs.Run) -> list[int]:
    """Lengths of all rows of a run's prepared data."""
    return [int(n) for side in ("train", "validation") for n in Dataset(run.data, side).row_lengths]
