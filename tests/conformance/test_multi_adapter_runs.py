"""Several runs in one worker on one base: as if each had been trained alone, and each with an end of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from finetune_local.adapter_format import read_adapter
from finetune_local.backend import Backend
from finetune_local.cli.train import command
from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training import check
from finetune_local.training.events import Event, Step
from finetune_local.training.run_folder import follow, runs

TRAINING = {
    "max_steps": 8,
    "batch_size": 4,
    "validate_every": 4,
    "checkpoint_every": 3,
    "sample_rows": 1,
    "sample_tokens": 4,
}
ADAPTERS: list[dict[str, Any]] = [
    {"name": "甲 one", "method": {"key": "lora", "rank": 4}, "training": {"learning_rate": 5e-3}},
    {
        "name": "two",
        "method": {"key": "dora", "rank": 2},
        "training": {"learning_rate": 2e-3, "max_steps": 5, "seed": 7},
    },
    {"name": "three", "method": {"key": "lora", "rank": 8, "targets": ["mlp"]}, "training": {"learning_rate": 1e-2}},
]


def config_of(folder: Path, tiny: Path, data: Path, backend: Backend, adapters: list[dict[str, Any]]) -> Path:
    tables = {
        "backend": backend.name,
        "model": {"id": str(tiny), "precision": "fp32"},
        "data": {"files": [str(data)]},
        "training": TRAINING,
        "adapters": adapters,
    }
    path = folder / "several 几个.json"
    path.write_text(json.dumps(tables, ensure_ascii=False), "utf-8")
    return path


def train(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
    done = CliRunner().invoke(command, [*arguments, "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_each_run_is_what_it_would_be_alone(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path
) -> None:
    lines = train("--config", str(config_of(tmp_path, tiny, data, backend, ADAPTERS)))
    assert {summary["run"] for summary in lines[-1]["runs"]} == {part["name"] for part in ADAPTERS}
    for part in ADAPTERS:
        name = part["name"]
        together = {line["step"]: line["loss"] for line in lines if line.get("event") == "step" and line["run"] == name}
        spec = parse_spec(
            {
                "name": f"{name} alone",
                "backend": backend.name,
                "model": {"id": str(tiny), "precision": "fp32"},
                "data": {"files": [str(data)]},
                "method": part["method"],
                "training": {**TRAINING, **part["training"]},
            },
            "test",
        )
        run = runs.create(home, check.check_before_loading(spec, home, lambda *_: None)[0])
        events: list[Event] = list(follow.follow(run, follow.start(run, home)))
        alone = {event.step: event.loss for event in events if isinstance(event, Step)}
        assert together.keys() == alone.keys()
        for step, loss in alone.items():
            assert together[step] == pytest.approx(loss, abs=1e-5)
        one, other = read_adapter(home.runs / name / "adapter")[1], read_adapter(run.adapter)[1]
        for key in one:
            np.testing.assert_allclose(one[key], other[key], atol=5e-4, err_msg=key)
        assert runs.find(home, name).status() == "finished" and not runs.find(home, name).worker_file.exists()


def test_one_that_is_stopped_leaves_the_others_going_on_and_goes_on_alone(
    home: Home, tiny: Path, data: Path, backend: Backend
) -> None:
    begun = []
    for part in ADAPTERS:
        tables = {**part, "backend": backend.name, "model": {"id": str(tiny), "precision": "fp32"}}
        tables |= {"data": {"files": [str(data)]}, "training": {**TRAINING, **part["training"]}}
        begun.append(runs.create(home, check.check_before_loading(parse_spec(tables, "t"), home, lambda *_: None)[0]))
    positions = follow.start_all(begun, home)
    last: dict[str, Event] = {}
    for run, event in follow.follow_all(list(zip(begun, positions, strict=True))):
        last[run.name] = event
        if run.name == "three" and isinstance(event, Step) and event.step == 1:
            run.stop_file.touch()
    assert {name: event.kind for name, event in last.items()} == {
        "甲 one": "finished",
        "two": "finished",
        "three": "stopped",
    }
    stopped = runs.find(home, "three")
    assert stopped.status() == "paused"
    *_, end = follow.follow(stopped, follow.start(stopped, home))
    assert end.kind == "finished" and end.as_json()["summary"]["steps"] == TRAINING["max_steps"]


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ([], "must be sections"),
        ([{"method": "lora", "model": {"id": "x"}}], "outside the sections"),
        ([{"method": "lora"}, {"method": "full"}], "Train it alone"),
        ([{"name": "a", "method": "lora"}, {"name": "a", "method": "dora"}], "called 'a'"),
        ([{"method": "lora"}, {"method": {"key": "lora", "rank": 4000}}], "rank"),
        ([{"method": "lora"}, {"method": "lora", "data": {"files": ["gone.jsonl"]}}], "gone.jsonl"),
    ],
)
def test_what_cannot_be_trained_at_once_is_said_before_anything_is_loaded(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path, adapters: list[dict[str, Any]], words: str
) -> None:
    from finetune_local.system.errors import UserError

    with pytest.raises(UserError, match=words):
        train("--config", str(config_of(tmp_path, tiny, data, backend, adapters)))
    assert list(home.runs.iterdir()) == []


def test_precisions_must_agree(home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path) -> None:
    from finetune_local.system.errors import SpecError

    path = config_of(tmp_path, tiny, data, backend, [{"method": "lora"}, {"method": "qlora"}])
    tables = json.loads(path.read_text("utf-8"))
    del tables["model"]["precision"]
    path.write_text(json.dumps(tables), "utf-8")
    with pytest.raises(SpecError, match="precision"):
        train("--config", str(path))
