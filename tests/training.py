"""Small runs on a tiny model and what is asked of them; conformance/conftest.py hands out the fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.adapter_format import read_adapter
from finetune_local.backend import Backend
from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training import check, multi_adapter
from finetune_local.training.events import Event, Step
from finetune_local.training.loop import Loop
from finetune_local.training.run_folder import runs
from finetune_local.training.setup import Ready, make_ready

STEPS = 12


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty conversations that a tiny model can begin to learn."""
    path = tmp_path / "聊天 chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"好 {i % 5} ok"}]}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def make_run(home: Home, tiny: Path, data: Path, backend: Backend) -> Callable[..., runs.Run]:
    """A function that makes a run folder; keywords are settings of [training]."""

    def make(name: str, method: object = "lora", **training: Any) -> runs.Run:
        defaults = {"max_steps": STEPS, "batch_size": 4, "learning_rate": 5e-3, "validate_every": 6, "checkpoint_every": 3,
                    "sample_rows": 0, "micro_batch_tokens": 128}  # fmt: skip
        tables = {
            "name": name,
            "backend": backend.name,
            "model": {"id": str(tiny), "precision": "fp32"},
            "data": {"files": [str(data)], "validation": 0.2},
            "method": method,
            "training": defaults | training,
        }
        spec, _ = check.check_before_loading(parse_spec(tables, "test"), home, lambda *_: None)
        return runs.create(home, spec)

    return make


def ready_of(run: runs.Run, home: Home) -> Ready:
    ready = list(make_ready(run, home))[-1]
    assert isinstance(ready, Ready)
    return ready


def train(run: runs.Run, home: Home, stop: Callable[[], bool] = lambda: False, change: Any = None) -> list[Event]:
    """Train here, in this process."""
    ready = ready_of(run, home)
    if change is not None:
        change(ready)
    told = []
    for event in multi_adapter.events(Loop(ready, stop)):
        run.append(event)
        told.append(event)
    return told


def losses(events: Iterator[Event] | list[Event]) -> dict[int, float]:
    return {e.step: e.loss for e in events if isinstance(e, Step)}


def result(run: runs.Run) -> dict[str, np.ndarray]:
    return read_adapter(run.adapter)[1]


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)
