from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_local.backend import Device
from finetune_local.models.folder import ModelFolder
from finetune_local.runtime.status import Status
from finetune_local.spec.tuners import presets
from finetune_local.training.run_folder.facts import RunFacts
from finetune_local.training.run_folder.forecast import DataFacts, Forecast, Pace, Work, forecast, pace, work_of_run

CPU = Device("cpu", "cpu", "a processor", 8_000_000_000)
DATA = DataFacts(rows=200, tokens=20_000, longest=150, held_out=0)


def told(tiny: Path, tables: dict[str, Any], device: Device | None = CPU, data: DataFacts | None = DATA) -> Forecast:
    model = ModelFolder.open(tiny)
    given = {"model": {"id": str(tiny)}, "data": {"files": ["x.jsonl"]}, "backend": "torch", **tables}
    return forecast(given, device, lambda _spec: model, data, lambda _work, _fast: Pace(1000.0, "same", "before"))


def test_everything_is_told_of_a_plain_run(tiny: Path) -> None:
    found = told(tiny, {})
    assert found.problems == ()
    assert found.memory is not None and found.verdict == "fits"
    assert found.automatic["training.batch_size"] == 8 and found.automatic["model.precision"] == "fp32"
    assert found.steps is not None and found.steps == found.automatic["training.max_steps"]
    assert found.seconds == pytest.approx(found.steps * 8 * 100 / 1000)
    assert found.trainable and found.trainable > 1000


@pytest.mark.parametrize(
    ("tables", "word"),
    [
        ({"training": {"learning_rate": "abc"}}, "learning_rate"),
        ({"training": {"batch_size": "0"}}, "batch_size"),
        ({"method": {"key": "lora", "rank": 5000}}, "rank"),
        ({"method": {"key": "lora", "targets": ["nothing_like_it"]}}, "nothing_like_it"),
        ({"method": "none"}, "no method"),
        ({"backend": "tensorflow"}, "tensorflow"),
    ],
)
def test_a_mistake_is_a_sentence_and_no_error(tiny: Path, tables: dict[str, Any], word: str) -> None:
    found = told(tiny, tables)
    assert (
        found.problems and word in " ".join(found.problems) and not any(p.startswith("form:") for p in found.problems)
    )


def test_several_mistakes_are_told_at_once(tiny: Path) -> None:
    assert len(told(tiny, {"training": {"learning_rate": "abc", "batch_size": "x"}}).problems) == 2


def test_goals_differ_in_length(tiny: Path) -> None:
    steps = [told(tiny, {"goal": goal}).steps for goal in ("quick", "balanced", "thorough")]
    assert None not in steps and steps[0] < steps[1] < steps[2]  # type: ignore[operator]


def test_what_is_typed_counts_more_than_the_goal(tiny: Path) -> None:
    assert told(tiny, {"goal": "thorough", "training": {"max_steps": "7"}}).steps == 7


def test_what_is_not_known_is_left_open(tiny: Path) -> None:
    assert told(tiny, {}, device=None).memory is None
    without = told(tiny, {}, data=None)
    assert without.memory is not None and without.steps is None and without.seconds is None


def test_too_little_memory_is_called_so(tiny: Path) -> None:
    assert told(tiny, {}, Device("cpu", "cpu", "tiny", 100_000_000)).verdict == "too big"


@pytest.mark.parametrize("key", list(presets()))
def test_every_method_has_a_forecast_or_a_reason(tiny: Path, key: str) -> None:
    found = told(tiny, {"method": {"key": key}})
    assert found.problems or (found.memory is not None and found.steps)


def test_the_pace_is_asked_for_what_will_really_be_computed(tiny: Path) -> None:
    asked: list[Work] = []

    def pace_of(work: Work, _fast: bool) -> Pace:
        asked.append(work)
        return Pace(0.0, "unknown")

    model = ModelFolder.open(tiny)
    tables = {"model": {"id": "m"}, "data": {"files": ["x"]}, "backend": "torch", "method": "full"}
    found = forecast(tables, CPU, lambda _spec: model, DATA, pace_of)
    assert found.seconds is None
    assert asked == [Work("m", model.parameters, "torch", "fp32", whole=True)]


@pytest.mark.parametrize(("tables", "operations"), [
    ({}, 4), ({"objective": "cpt"}, 4), ({"objective": "dpo"}, 6), ({"objective": {"key": "dpo", "cache_reference": True}}, 4),
    ({"objective": "dpo", "training": {"gradient_checkpointing": True}}, 8), ({"objective": "dpo", "method": "full"}, 8),
])  # fmt: skip
def test_operations_of_a_token(tiny: Path, tables: dict[str, Any], operations: int) -> None:
    works: list[Work] = []

    def pace_of(work: Work, _fast: bool) -> Pace:
        works.append(work)
        return Pace(0.0, "unknown")

    given = {"model": {"id": "m"}, "data": {"files": ["x"]}, "backend": "torch", **tables}
    model = ModelFolder.open(tiny)
    forecast(given, CPU, lambda _spec: model, DATA, pace_of)
    assert works[0].operations == operations * model.parameters


def test_a_run_with_another_objective_scales_the_pace() -> None:
    facts = RunFacts(
        run="r", status=Status.FINISHED, folder="", changed="", changed_time=0.0, model="m", seconds=10.0, trained_tokens=1000,
        steps=20, backend="torch", precision="fp32", trainable_parameters=1, objective="sft",
    )  # fmt: skip
    before = work_of_run(facts, {"m": 1000})
    assert before is not None
    pairs = replace(before[0], reference=True)
    found = pace(pairs, [before], None, False)
    assert found.tokens_per_second == pytest.approx(100.0 * 4 / 6) and found.basis == "similar"
    again = work_of_run(replace(facts, objective="dpo"), {"m": 1000})
    assert again is not None and pace(pairs, [before, again], None, False).basis == "same"
