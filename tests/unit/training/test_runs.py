"""The run folder: names, status, damage."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from finetune_local.cli import resume
from finetune_local.cli import train as train_verb
from finetune_local.cli.train import follow_to_the_end
from finetune_local.runtime import start
from finetune_local.spec.run import parse_spec
from finetune_local.system.errors import DamagedRun, DiskFull, SpecError, Stopped, WorkerDied
from finetune_local.system.paths import Home
from finetune_local.training import worker
from finetune_local.training.checkpoints import checkpoint
from finetune_local.training.events import EVENTS, Failed, Finished, Note, Phase, Step, StoppedByUser
from finetune_local.training.run_folder import follow, runs
from working import mark_running, release


def new(home: Home, **tables: object) -> runs.Run:
    return runs.create(home, parse_spec({"data": {"files": ["/x/我的 data.jsonl"]}, **tables}, "test"))


def step(number: int) -> Step:
    return Step(
        step=number, steps=9, loss=1.0, learning_rate=0.1, gradient_norm=1.0, tokens=1, supervised_tokens=1,
        tokens_per_second=1.0, seconds_left=1.0, peak_memory_bytes=1,
    )  # fmt: skip


def test_names_count_up_and_say_what_the_run_is(home: Home) -> None:
    assert [new(home).name, new(home).name] == ["我的-data-lora-1", "我的-data-lora-2"]
    assert new(home).spec.name == "我的-data-lora-3"


def test_what_killed_processes_left_is_removed_and_what_others_are_making_is_not(home: Home) -> None:
    making, left, gone = (home.runs / f".writing-{name}" for name in ("new-a", "mine", "new-b"))
    making.mkdir()
    left.mkdir()
    os.utime(left, (0, 0))
    gone.symlink_to(home.runs / "nothing")  # it got its name between the listing and the look at it
    assert new(home, name="one").name == "one"
    assert making.exists() and not left.exists()


def test_a_taken_name_is_refused_with_the_way_on(home: Home) -> None:
    new(home, name="mine")
    with pytest.raises(SpecError, match="resume mine"):
        new(home, name="mine")


@pytest.mark.parametrize("name", ["a/b", "..", "", "a\\b", "-x", "x" * 101, "a:b", "a.", "a ", "nul", "Com1.x", "a\tb"])
def test_names_that_cannot_be_folders(home: Home, name: str) -> None:
    with pytest.raises(SpecError, match="--run"):
        new(home, name=name)


def test_a_full_disk_is_a_sentence_while_events_are_written(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(home)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(DiskFull, match="resume"):
        run.append(step(1))


def test_a_folder_with_a_config_is_no_run(home: Home, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}", "utf-8")
    with pytest.raises(SpecError, match="there is no run"):
        runs.find(home, str(tmp_path))


def test_what_lies_among_the_runs_is_found_by_its_name(home: Home) -> None:
    """Else a damaged run would be listed, and could not be removed."""
    (home.runs / "cut").mkdir()
    (home.runs / "cut" / "run.json").write_text("{", "utf-8")
    assert runs.find(home, "cut").name == "cut"
    with pytest.raises(SpecError, match="there is no run"):
        runs.find(home, "../runs/cut")


def test_find_suggests(home: Home) -> None:
    new(home, name="orders")
    assert runs.find(home, "orders").name == "orders"
    with pytest.raises(SpecError, match="Did you mean 'orders'"):
        runs.find(home, "order")


def test_status_follows_the_last_event(home: Home) -> None:
    run = new(home)
    assert run.status() == "queued"
    for event, status in [
        (step(1), "failed"),
        (StoppedByUser(step=1, summary={}), "paused"),
        (Failed(error="DiskFull", message="m", exit_code=1), "failed"),
        (Finished(reason="r", summary={"x": "é中" * 9000}), "finished"),
    ]:
        run.append(event)
        assert run.status() == status and run.process_state().killed == isinstance(event, Step)
        assert run.last_event() == event


def test_a_run_lives_while_its_lock_is_held(home: Home) -> None:
    run = new(home)
    mark_running(run)
    assert run.worker_pid() == os.getpid()
    assert run.status() == "running"
    for change in (lambda: runs.remove(run, home), lambda: runs.delete(run), lambda: runs.rename(run, "other", home)):
        with pytest.raises(SpecError, match="is running"):
            change()
    known = json.loads(run.worker_file.read_text("utf-8"))
    run.worker_file.write_text(json.dumps({**known, "mark": "of an earlier process"}), "utf-8")
    assert run.alive() and run.worker_pid() is None  # what a killed one left must not be taken for the one that begins
    left = run.worker_file.read_bytes()
    release(run)
    run.worker_file.write_bytes(left)
    assert not run.alive() and run.worker_pid() is None and run.process_state().killed
    runs.remove(run, home)


def test_a_half_written_line_is_cut_off(home: Home) -> None:
    run = new(home)
    run.append(step(1))
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write('{"event": "note", "text": "半'.encode()[:-1])
    assert list(run.history()) == [run.last_event()]
    run.repair()
    run.append(step(2))
    assert [e.step for e in run.history() if isinstance(e, Step)] == [1, 2]


def test_a_damaged_run_json_is_a_sentence(home: Home) -> None:
    run = new(home)
    (run.folder / "run.json").write_text("{", "utf-8")
    with pytest.raises(SpecError, match=r"run\.json"):
        _ = run.spec


@pytest.mark.parametrize(
    "unknown", [{"method": {"key": "later"}}, {"objective": "later"}, {"training": {"later": 1}}, {"later": 1}]
)
def test_what_only_a_newer_version_knows_is_not_called_a_mistake(home: Home, unknown: dict[str, object]) -> None:
    run = new(home)
    file = run.folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **unknown}), "utf-8")
    with pytest.raises(DamagedRun, match="newer version"):
        _ = run.spec


def test_every_event_survives_json() -> None:
    assert len(EVENTS.classes) == 10
    for event in (step(3), Note(text="中"), Phase(name="p"), Finished(reason="r", summary={"a": 1})):
        assert EVENTS.read(json.loads(json.dumps(event.as_json()))) == event


def test_a_thousand_runs_are_listed_by_their_last_lines(home: Home, tmp_path: Path) -> None:
    run = new(home)
    with (run.folder / "events.jsonl").open("w", encoding="utf-8") as file:
        for number in range(50_000):
            file.write(json.dumps(step(number).as_json()) + "\n")
    read_before = psutil.Process().io_counters().read_chars
    last = run.last_event()
    assert isinstance(last, Step)
    assert last.step == 49_999
    assert psutil.Process().io_counters().read_chars - read_before < 100_000


def test_a_second_worker_touches_nothing(home: Home) -> None:
    run = new(home)
    run.stop_file.touch()
    with run.locked() as first:
        assert first
        assert worker.main([str(run.folder), str(home.root)]) == 1
        assert run.stop_file.exists()
        assert not (run.folder / "events.jsonl").exists()
    with run.locked() as later:
        assert later


def test_a_follower_begins_at_a_whole_line(home: Home) -> None:
    run = new(home)
    assert run.events_end() == 0
    run.append(Note(text="中" * 40_000))
    whole = run.events_end()
    assert whole == (run.folder / "events.jsonl").stat().st_size
    with (run.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "' + b"x" * 70_000)
    assert run.events_end() == whole


def test_an_interrupted_start_leaves_no_worker(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(home)

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("time.sleep", interrupt)
        follow.start(run, home)
    assert start._children.pop(run.folder).wait(20) != 0


def test_the_workers_libraries_do_not_come_from_the_users_folder(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "psutil.py").write_text("raise SystemExit('not this one')", "utf-8")
    monkeypatch.chdir(tmp_path)
    run = new(home, model={"id": str(tmp_path / "none")})
    events = list(follow.follow(run, follow.start(run, home)))
    assert isinstance(events[-1], Failed)  # it has no model, but it did begin


def test_ctrl_c_twice_is_stopped_not_failed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(home)

    def dies(*_: object) -> Iterator[None]:
        signal.raise_signal(signal.SIGINT)
        assert run.stop_file.exists()
        signal.raise_signal(signal.SIGINT)
        raise WorkerDied("unexpectedly")
        yield

    monkeypatch.setattr(follow, "start", lambda *_: 0)
    monkeypatch.setattr(follow, "follow", dies)
    with pytest.raises(Stopped, match="resume"):
        follow_to_the_end(run, home, as_json=True)


def checkpointed(run: runs.Run, **counters: int) -> None:
    """A checkpoint folder as far as counting goes."""
    state = checkpoint.LoopState(**counters)  # type: ignore[arg-type]
    place = run.checkpoints / f"step-{state.step:06d}"
    place.mkdir()
    (place / checkpoint.STATE).write_text(json.dumps(dataclasses.asdict(state)), "utf-8")


def test_resume_with_more_steps(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(home, name="long", training={"max_steps": 10, "early_stopping": 2})
    checkpointed(run, step=8, worse_validations=2)
    run.append(Finished(reason="no better validation loss in 2 validations", summary={"steps": 8}))
    monkeypatch.setattr(train_verb, "follow_to_the_end", lambda *_: None)

    def go_on(steps: int) -> None:
        resume.command.callback("long", steps, str(home.root), False)  # type: ignore[misc]

    with pytest.raises(SpecError, match="has already done 8 steps"):
        go_on(8)
    assert run.spec.training.max_steps == 10
    go_on(9)
    assert run.spec.training.max_steps == 9
    assert run.spec.training.early_stopping == 4  # else it would end at once, for the reason it ended before
    monkeypatch.setattr(runs.Run, "alive", lambda _: True)
    with pytest.raises(SpecError, match="is being trained"):
        go_on(20)
    assert run.spec.training.max_steps == 9


def test_the_newest_checkpoint_is_the_one_of_the_highest_number(home: Home) -> None:
    run = new(home)
    for number in (999_998, 999_999, 1_000_000):
        checkpointed(run, step=number)
    assert checkpoint.counters(run.checkpoints).step == 1_000_000
    checkpoint.prune(run.checkpoints, keep=1, best_step=0)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-1000000"]


def test_a_disk_that_is_full_as_the_worker_begins_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new(home)

    def full(_path: Path, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert worker.main([str(run.folder), str(home.root)]) == DiskFull.exit_code
    last = run.last_event()
    assert isinstance(last, Failed) and last.error == "DiskFull" and "no space is left" in last.message
    assert run.status() == "failed" and not run.worker_file.exists()


def test_a_worker_that_died_before_its_first_word_leaves_no_new_run(home: Home) -> None:
    run = new(home)
    assert run.process_state().as_json() == "new"
    run.worker_file.write_text(json.dumps({"pid": 2**30, "started": 1.0}), "utf-8")
    assert run.status() == "failed" and run.process_state().as_json() == "interrupted"
