"""Objectives beside supervised fine-tuning: they train, resume as unbroken, and run alike on both backends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_local.backend import Backend, backends
from finetune_local.spec.run import as_tables, parse_spec
from finetune_local.system.paths import Home
from finetune_local.training import check
from finetune_local.training.events import Event, Validation
from finetune_local.training.run_folder import runs
from training import assert_same, losses, ready_of, result, train

STEPS = 20
OBJECTIVES: dict[str, dict[str, Any]] = {"cpt": {"key": "cpt"}}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Data by the objective that learns from it."""
    texts = [" ".join(f"word {(i * j) % 11}," for j in range(3 + 4 * (i % 5))) for i in range(40)]
    found = {"cpt": tmp_path / "文本 texts.jsonl"}
    found["cpt"].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return found


@pytest.fixture
def make(home: Home, tiny: Path, files: dict[str, Path]) -> Callable[..., runs.Run]:
    def made(name: str, backend: str, key: str, steps: int = STEPS, **objective: Any) -> runs.Run:
        tables = {
            "name": name,
            "backend": backend,
            "model": {"id": str(tiny), "precision": "fp32"},
            "data": {"files": [str(files[key])], "validation": 0.2, "max_length": 64},
            "method": {"key": "lora", "rank": 4},
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
