"""A thousand runs are listed by little reading; what is damaged or foreign is listed or passed over, never in the way."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest

from finetune_local.runtime.status import Status
from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training.events import Failed, Finished, Note, Step, StoppedByUser, Validation
from finetune_local.training.run_folder import facts, runs
from working import mark_running, release


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that paths open from now on."""
    found: list[str] = []
    real = io.open

    def counted(file: Any, *rest: Any, **options: Any) -> Any:
        found.append(str(file))
        return real(file, *rest, **options)

    monkeypatch.setattr(io, "open", counted)
    return found


def new(home: Home, name: str) -> runs.Run:
    return runs.create(home, parse_spec({"name": name, "data": {"files": ["/d/订单.jsonl"]}}, "test"))


def step(number: int, loss: float = 1.0) -> Step:
    return Step(
        step=number, steps=9, loss=loss, learning_rate=0.1, gradient_norm=1.0, tokens=1, supervised_tokens=1,
        tokens_per_second=1.0, seconds_left=1.0, peak_memory_bytes=1,
    )  # fmt: skip


def test_few_files_are_opened_for_each_run_and_none_again(home: Home, opened: list[str]) -> None:
    for number in range(40):
        run = new(home, f"run {number}")
        for event in (*(step(i) for i in range(50)), Finished(reason="r", summary={"last_loss": 0.1})):
            run.append(event)
    listing = facts.Listing(home)
    opened.clear()
    first = listing.all()
    # run.json and events.jsonl
    assert len(opened) == 2 * 40
    opened.clear()
    assert listing.all() == first
    assert opened == []
    runs.find(home, "run 7").append(StoppedByUser(step=1, summary={}))
    assert {told.run: told.status for told in listing.all()}["run 7"] == "paused"
    assert len(opened) == 3  # the event that was appended, and the two


def test_losses_are_told_before_a_run_ends(home: Home) -> None:
    run = new(home, "a")
    for event in (Validation(step=0, loss=3.0, best=True), step(1, 2.0), Validation(step=1, loss=1.5, best=True)):
        run.append(event)
    told = facts.facts_of(run)
    assert (told.killed, told.step, told.last_loss, told.validation_loss) == (True, 1, 2.0, 1.5)
    assert told.files == ("/d/订单.jsonl",)
    run.append(Failed(error="DiskFull", message="no space", exit_code=1))
    assert facts.facts_of(run).problem == "no space"


def test_a_killed_worker_is_noticed_though_no_file_changed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(home, "a")
    run.append(step(1))
    mark_running(run)
    listing = facts.Listing(home)
    told = listing.all()[0]
    assert told.status == "running" and told.seconds is not None and told.seconds > 0
    left = run.worker_file.read_bytes()
    release(run)
    run.worker_file.write_bytes(left)  # as a kill leaves it
    assert listing.all()[0].as_json()["status"] == "interrupted"


def test_damaged_and_foreign_things_do_not_break_the_list(home: Home) -> None:
    good = new(home, "good")
    good.append(Note(text="begin"))
    with good.events_file.open("ab") as file:
        file.write(b'\x00\xff not json\n[1, 2]\n{"event": "of a later version", "x": 1}\n')
    (home.runs / "a file.txt").write_text("x", "utf-8")
    (home.runs / "empty").mkdir()
    for name, text in (("cut", "{"), ("list", "[]"), ("null", '{"method": null}'), ("latin", '{"é"'.encode("latin-1"))):
        (home.runs / name).mkdir()
        content = text if isinstance(text, bytes) else text.encode()
        (home.runs / name / "run.json").write_bytes(content)
    (home.runs / "folder" / "run.json").mkdir(parents=True)
    told = {facts_.run: facts_ for facts_ in facts.Listing(home).all()}
    assert set(told) == {"good", "cut", "list", "null", "latin", "folder"}
    assert told["good"].status == "failed"
    damaged = [row for name, row in told.items() if name != "good"]
    assert all(row.damaged and row.status in set(Status) for row in damaged), "a mark beside the status"
    assert {row.as_json()["status"] for row in damaged} == {"damaged"}
    assert not told["good"].damaged
    assert "run.json" in (told["cut"].problem or "")
    assert [event.kind for event in good.history()] == ["note"]


def test_what_is_printed_is_derived_from_the_facts(home: Home) -> None:
    run = new(home, "a")
    summary = {
        "run": "an earlier name",
        "last_loss": 0.5,
        "cpu_seconds": 3.0,
        "of a later version": [1],
        "order": 7,
        "extras": 8,
    }
    run.append(Finished(reason="r", summary=summary))
    found = facts.facts_of(run)
    printed = found.as_json()
    begin = [
        "run",
        "status",
        "folder",
        "changed",
        "changed_time",
        "method",
        "objective",
        "model",
        "backend",
        "precision",
    ]
    later = ["last_loss", "cpu_seconds", "of a later version", "order", "extras"]
    assert list(printed) == [*begin, "steps", "max_steps", "files", *later]
    assert printed["run"] == "a" and printed["files"] == ["/d/订单.jsonl"]
    assert {name: printed[name] for name in later} == {name: summary[name] for name in later}
    assert set(found.extras) == set(later) - {"last_loss"}, "a value is not kept twice"
    changed = replace(found, last_loss=0.25, model="another").as_json()
    assert (changed["last_loss"], changed["model"]) == (0.25, "another") and list(changed) == list(printed)
