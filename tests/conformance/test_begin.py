"""Runs that the window makes: their worker checks them; and the two ways to end one early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_local.backend import Backend
from finetune_local.spec.run import RunSpec, parse_spec
from finetune_local.system.errors import SpecError
from finetune_local.system.paths import Home
from finetune_local.training.events import Event, Failed, Finished, Note, Phase, Started, Step, StoppedByUser
from finetune_local.training.run_folder import follow, runs


def spec_of(backend: Backend, tiny: Path, data: Path, **tables: Any) -> RunSpec:
    given = {
        "backend": backend.name,
        "model": {"id": str(tiny)},
        "data": {"files": [str(data)]},
        "training": {"max_steps": 4},
    }
    return parse_spec({**given, **tables}, "test")


def trained(run: runs.Run, home: Home) -> list[Event]:
    return list(follow.follow(run, follow.start(run, home)))


def test_the_worker_settles_what_nobody_checked(backend: Backend, tiny: Path, data: Path, home: Home) -> None:
    run = follow.create_unchecked(spec_of(backend, tiny, data), home)
    assert run.spec.model.precision is None
    events = trained(run, home)
    assert isinstance(events[0], Phase) and isinstance(events[-1], Finished)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any(text.startswith(f"backend = {backend.name}") for text in notes)
    assert run.spec.model.precision is not None and run.spec.device is not None


def test_what_a_preset_asks_for_and_a_backend_lacks_is_bridged_there_too(
    backend: Backend, tiny: Path, data: Path, home: Home
) -> None:
    precise = spec_of(backend, tiny, data, method="qlora", model={"id": str(tiny), "precision": "fp32"})
    run = follow.create_unchecked(precise, home)
    events = trained(run, home)
    assert isinstance(events[-1], Finished)
    assert any("instead of paged-adamw" in event.text for event in events if isinstance(event, Note))


def test_a_mistake_that_only_the_worker_sees_is_told_and_leaves_no_run(
    backend: Backend, tiny: Path, data: Path, home: Home
) -> None:
    run = follow.create_unchecked(spec_of(backend, tiny, data, device="cuda:7"), home)
    last = trained(run, home)[-1]
    assert isinstance(last, Failed) and last.exit_code == 2 and "cuda:7" in last.message
    assert follow.forget_untrained(run, last)
    assert not run.folder.exists()


def test_what_can_be_seen_at_once_is_told_at_once(backend: Backend, tiny: Path, data: Path, home: Home) -> None:
    with pytest.raises(SpecError, match="file not found"):
        follow.create_unchecked(spec_of(backend, tiny, data.with_name("none.jsonl")), home)
    assert runs.every(home) == []


def test_a_run_killed_while_it_was_checked_is_checked_again(
    backend: Backend, tiny: Path, data: Path, home: Home
) -> None:
    run = follow.create_unchecked(spec_of(backend, tiny, data), home)
    run.append(Phase(name="checking the settings"))
    assert isinstance(trained(run, home)[-1], Finished)
    assert run.spec.model.precision is not None


def stopped(make_run: Any, home: Home, name: str, *, finish: bool) -> tuple[runs.Run, list[Event]]:
    run = make_run(name, max_steps=5000, checkpoint_every=1000, validate_every=5000)
    seen: list[Event] = []
    for event in follow.follow(run, follow.start(run, home)):
        seen.append(event)
        if isinstance(event, Step) and event.step == 3:
            runs.ask_to_stop(run, finish=finish)
    return run, seen


def test_a_pause_is_gone_on_with_and_an_end_is_an_end(make_run: Any, home: Home) -> None:
    paused, seen = stopped(make_run, home, "paused", finish=False)
    assert isinstance(seen[-1], StoppedByUser) and paused.status() == "paused"
    ended, seen = stopped(make_run, home, "ended", finish=True)
    last = seen[-1]
    assert isinstance(last, Finished) and last.reason == "stopped as requested"
    assert ended.status() == "finished" and (ended.adapter / "adapter_model.safetensors").is_file()
    assert last.summary["steps"] >= 3
    assert not ended.stop_file.exists()


def test_a_wish_to_end_before_the_first_step_leaves_off_instead(make_run: Any, home: Home) -> None:
    run = make_run("early", max_steps=50)
    runs.ask_to_stop(run, finish=True)
    # A worker takes a leftover file away; this one was put there while it prepared.
    seen: list[Event] = []
    for event in follow.follow(run, follow.start(run, home)):
        seen.append(event)
        if isinstance(event, Phase) and not run.stop_file.exists() and not any(isinstance(e, Started) for e in seen):
            runs.ask_to_stop(run, finish=True)
    assert isinstance(seen[-1], StoppedByUser) and seen[-1].step == 0
