"""How several runs at once end: killed, stopped, ended at once, diverged, or never begun; each is told by its name."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conformance.test_multi_adapter_runs import TRAINING, config_of, train
from finetune_local.backend import Backend, StepRequest, StepResult
from finetune_local.cli.resume import command as resume
from finetune_local.spec.run import parse_spec
from finetune_local.system.errors import OutOfMemory, SpecError, Stopped, TrainingDiverged, UserError, WorkerDied, typed
from finetune_local.system.paths import Home
from finetune_local.training import check, setup
from finetune_local.training.events import Checkpoint, Event, Step
from finetune_local.training.loop import Loop
from finetune_local.training.multi_adapter import events_of_all
from finetune_local.training.run_folder import follow, runs
from finetune_local.training.run_folder.runs import Run

TWO: list[dict[str, Any]] = [
    {"name": "甲 one", "method": {"key": "lora", "rank": 4}, "training": {"learning_rate": 5e-3}},
    {"name": "two", "method": {"key": "dora", "rank": 2}, "training": {"learning_rate": 2e-3}},
]


def at_a_checkpoint(monkeypatch: pytest.MonkeyPatch, act: Callable[[Run], None]) -> None:
    """Do something where the last of the runs has written its first checkpoint."""
    told, seen = follow.follow_all, set[str]()

    def watched(places: Any) -> Iterator[tuple[Run, Event]]:
        for run, event in told(places):
            yield run, event
            if isinstance(event, Checkpoint) and run.name not in seen:
                seen.add(run.name)
                if len(seen) == len(TWO):
                    act(run)

    monkeypatch.setattr(follow, "follow_all", watched)


def long(parts: list[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    return [{**part, "training": {**part["training"], "max_steps": steps}} for part in parts]


def losses(run: Run) -> dict[int, float]:
    return {event.step: event.loss for event in run.history() if isinstance(event, Step)}


def test_after_a_kill_each_goes_on_alone_as_if_nothing_had_happened(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(run: Run) -> None:
        os.kill(run.worker_pid() or 0, signal.SIGKILL)

    parts = long(TWO, 40)
    with monkeypatch.context() as patch:
        at_a_checkpoint(patch, kill)
        with pytest.raises(WorkerDied) as died:
            train("--config", str(config_of(tmp_path, tiny, data, backend, parts)))
    killed = [runs.find(home, part["name"]) for part in parts]
    for run in killed:
        assert run.process_state().killed
        assert f"finetune-local resume {typed(run.name)}" in str(died.value)
    assert f'resume "{parts[0]["name"]}"' in str(died.value)
    train(
        "--config", str(config_of(tmp_path, tiny, data, backend, [{**p, "name": p["name"] + " whole"} for p in parts]))
    )
    for run in killed:
        resume.main([run.name, "--json"], standalone_mode=False)
        assert run.status() == "finished" and not run.worker_file.exists()
        whole, again = losses(runs.find(home, run.name + " whole")), losses(run)
        assert again.keys() == whole.keys()
        for step, loss in whole.items():
            assert again[step] == pytest.approx(loss, abs=1e-5), step


def test_the_second_interrupt_ends_all_at_once_and_says_how_to_go_on(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(_run: Run) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_a_checkpoint(monkeypatch, press)
    with pytest.raises(Stopped, match=r"stopped immediately.*resume two"):
        train("--config", str(config_of(tmp_path, tiny, data, backend, long(TWO, 4000))))
    assert all(run.process_state().killed for run in runs.every(home))


def test_one_that_diverges_is_told_by_name_and_leaves_the_other(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path
) -> None:
    wild = {"name": "wild", "method": {"key": "lora", "rank": 4, "alpha": 1e30}, "training": {"learning_rate": 9.0}}
    with pytest.raises(TrainingDiverged, match="run 'wild': "):
        train("--config", str(config_of(tmp_path, tiny, data, backend, [wild, TWO[1]])))
    assert runs.find(home, "wild").status() == "failed"
    assert runs.find(home, "two").status() == "finished"


def test_where_memory_is_short_each_computes_alone_and_learns_the_same(
    home: Home, tiny: Path, data: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(names: str, room: int) -> tuple[dict[str, list[float]], list[list[int]]]:
        loops: list[Loop] = []
        for name, part in zip(names, TWO, strict=True):
            tables = {**part, "name": name, "backend": backend.name, "model": {"id": str(tiny), "precision": "fp32"}}
            training = {**TRAINING, **part["training"], "max_steps": 4, "sample_rows": 0}
            spec = parse_spec({**tables, "data": {"files": [str(data)]}, "training": training}, "t")
            run = runs.create(home, check.check_before_loading(spec, home, lambda *_: None)[0])
            *_, ready = setup.make_ready(run, home, loops[0].ready if loops else None)
            assert isinstance(ready, setup.Ready)
            loops.append(Loop(ready, lambda: False))
        session, tried = loops[0].ready.session, list[list[int]]()
        step = session.step_many

        def short(requests: Sequence[StepRequest]) -> list[StepResult]:
            tried.append([max(batch.ids.size for batch in request.batches) for request in requests])
            if sum(tried[-1]) > room:
                raise OutOfMemory("a test's room is full.")
            return step(requests)

        monkeypatch.setattr(session, "step_many", short)
        losses: dict[str, list[float]] = {}
        for loop, event in events_of_all(loops):
            if isinstance(event, Step):
                losses.setdefault(loop.ready.plan.method, []).append(event.loss)
        return losses, tried

    wide, all_at_once = trained("ab", 1_000_000)
    tight, tried = trained("cd", max(max(sizes) for sizes in all_at_once))
    assert len(all_at_once) == 4
    for method, expected in wide.items():
        assert tight[method] == pytest.approx(expected, abs=1e-5)
    together = [sum(sizes) for sizes in tried if len(sizes) > 1]
    assert together and all(
        later < earlier for earlier, later in itertools.pairwise(together)
    )  # none is tried in vain again


def test_one_that_cannot_begin_is_named_and_no_run_stays_behind(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path
) -> None:
    empty = tmp_path / "nothing 空.jsonl"
    empty.write_text("", "utf-8")
    bad = {"name": "bad", "method": "lora", "data": {"files": [str(empty)]}}
    with pytest.raises(UserError) as refused:
        train("--config", str(config_of(tmp_path, tiny, data, backend, [TWO[0], bad])))
    assert str(refused.value).startswith("run 'bad': ") and str(refused.value).count("the file is empty") == 1
    assert list(home.runs.iterdir()) == []


def test_a_name_that_cannot_be_used_leaves_no_run_behind(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="a/b"):
        train("--config", str(config_of(tmp_path, tiny, data, backend, [TWO[0], {**TWO[1], "name": "a/b"}])))
    assert list(home.runs.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"method": {"key": "lora", "rang": 4}}, "rang"),
        ({"method": {"key": "lora", "rank": 4000}}, "a rank above"),
        ({"method": {"key": "prefix", "rank": 4}}, "belongs to .*lora"),
        ({"method": "lora", "training": {"max_steps": 0}}, "max_steps"),
        ({"method": "lora", "data": {"files": ["gone.jsonl"]}}, "gone.jsonl"),
        ({"method": "dorra"}, "Did you mean 'dora'"),
    ],
)
def test_a_mistake_in_a_section_names_the_section(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    path = config_of(tmp_path, tiny, data, backend, [TWO[0], {"name": "乙", **wrong}])
    with pytest.raises(UserError, match=rf"(?s)\[\[adapters\]\] number 2 \('乙'\): .*({words})"):
        train("--config", str(path))


def test_a_mistake_outside_the_sections_is_no_section_s(
    home: Home, tiny: Path, data: Path, backend: Backend, tmp_path: Path
) -> None:
    path = config_of(tmp_path, tiny, data, backend, TWO)
    path.write_text(path.read_text("utf-8").replace('"batch_size": 4', '"batch_size": "many"'), "utf-8")
    with pytest.raises(SpecError, match="batch_size") as refused:
        train("--config", str(path))
    assert "number" not in str(refused.value).replace("a number", "")
