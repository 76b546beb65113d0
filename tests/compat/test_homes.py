"""Homes that earlier versions wrote are listed, shown, resumed, chatted with, evaluated, exported and restored from."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compat import house, record_curves
from compat.make_home import answer, shown
from compat.old_homes import COMMITS, HOMES, OldHome, copied, differences
from conftest import USABLE
from finetune_local.system import paths

EXPECTED = {commit: json.loads((HOMES / commit / "expected.json").read_text("utf-8")) for commit in COMMITS}
RESUMED = [(commit, name) for commit in COMMITS for name in EXPECTED[commit]["resumed"]]

pytestmark = pytest.mark.skipif(not USABLE, reason="no backend is installed")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], OldHome]:
    """A function that copies a home and makes it the one in use."""

    def use(commit: str) -> OldHome:
        found = copied(commit, tmp_path / "old 旧")
        monkeypatch.setenv(paths.ENVIRONMENT_VARIABLE, str(found.home))
        monkeypatch.setenv(paths.CONFIG_VARIABLE, str(found.config))
        return found

    return use


@pytest.mark.parametrize("commit", COMMITS)
def test_what_was_shown_is_shown(old: Callable[[str], OldHome], commit: str) -> None:
    """Runs, adapters, models, conversations, evaluations, jobs, trash, drafts and preferences; more may be shown than before."""
    found = old(commit)
    assert list(differences(found.shown, shown(found.home))) == []


@pytest.mark.parametrize(("commit", "name"), RESUMED)
def test_a_stopped_run_goes_on_with_the_same_losses(old: Callable[[str], OldHome], commit: str, name: str) -> None:
    recorded = EXPECTED[commit]["resumed"][name]
    found = old(commit)
    backend = json.loads((found.home / "runs" / name / "run.json").read_text("utf-8"))["backend"]
    if backend not in USABLE:
        pytest.skip(f"{backend} is not installed")
    run = found.home / "runs" / name
    exactly = record_curves.machine(backend) == recorded["machine"]
    assert record_curves.compared(recorded["curve"], _resumed(run), exactly) == []
    assert house.printed("runs", "show", name)["status"] == "finished"


def _resumed(run: Path) -> dict[str, Any]:
    """The curve of the run's rest, trained in a process of its own: MLX takes its BLAS from what is loaded before it."""
    command = [sys.executable, record_curves.__file__, "--resume", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("commit", COMMITS)
def test_a_run_is_resumed_by_the_command_line(old: Callable[[str], OldHome], commit: str) -> None:
    found = old(commit)
    name = next(name for name in found.expected["resumed"] if name.endswith(USABLE[-1]))
    assert house.printed("resume", name)["steps"] == 6
    assert house.printed("runs", "show", name)["status"] == "finished"


@pytest.mark.skipif("torch" not in USABLE, reason="torch is not installed")
@pytest.mark.parametrize("commit", COMMITS)
def test_a_killed_run_goes_on_where_its_last_checkpoint_is(old: Callable[[str], OldHome], commit: str) -> None:
    found = old(commit)
    run = found.home / "runs" / "killed"
    saved = max(int(place.name.partition("-")[2]) for place in (run / "checkpoints").glob("step-*"))
    told = house.train(found.home, [run], saved + 2)[0]
    steps = [event["step"] for event in told if event["event"] == "step"]
    assert steps == [saved + 1, saved + 2] and told[-1]["event"] == "stopped"


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("commit", COMMITS)
def test_adapters_answer_as_they_did(old: Callable[[str], OldHome], commit: str, backend: str) -> None:
    found = old(commit)
    wanted: dict[str, str] = found.expected["answers"]
    assert {name: answer(name, found.expected["prompt"], backend) for name in wanted} == wanted


@pytest.mark.parametrize("commit", COMMITS)
def test_conversations_go_on(old: Callable[[str], OldHome], commit: str) -> None:
    found = old(commit)
    for before in found.expected["conversations"]:
        usual = ("--temperature", "0", "--max-tokens", "3", "--backend", USABLE[0])
        house.printed("chat", "--continue", before["id"], *usual, text="and now? 现在呢？\n")
        after = {one["id"]: one for one in house.printed("chat", "--list")}[before["id"]]
        assert after["turns"] == before["turns"] + 2 and after["first"] == before["first"]
        assert after["adapter"] == before["adapter"]


@pytest.mark.parametrize("commit", COMMITS)
def test_an_adapter_is_evaluated_and_votes_are_added(old: Callable[[str], OldHome], commit: str) -> None:
    found = old(commit)
    usual = ("--limit", "2", "--few-shot", "0", "--max-tokens", "3", "--backend", USABLE[0])
    assert house.printed("evaluate", "--adapter", "finished-torch", *usual)["rows"] == 2
    before = next(one for one in found.expected["evaluations"] if one["votes"])
    cast = sum(before["votes"]["base"][key] for key in ("tuned", "other", "ties", "skipped"))
    assert cast
    house.vote(found.home, before["name"], "base", ["undo"])
    after = next(one for one in house.evaluations(found.home) if one["name"] == before["name"])
    assert sum(after["votes"]["base"][key] for key in ("tuned", "other", "ties", "skipped")) == cast - 1


@pytest.mark.parametrize("commit", COMMITS)
def test_adapters_are_exported_and_merged(old: Callable[[str], OldHome], commit: str, tmp_path: Path) -> None:
    old(commit)
    targets: list[tuple[str, ...]] = [("adapter", "--quant", "zip"), ("merged",), ("gguf", "--quant", "f16")]
    for number, (target, *more) in enumerate(targets):
        out = tmp_path / f"out-{number}{'.zip' if 'zip' in more else ''}"
        done = house.printed("export", "finished-torch", "--to", target, *more, "--no-gate", "--out", str(out))
        assert out.exists() and done["bytes"] > 0
    assert house.printed("merge", "several-b", "--no-gate", "--out", str(tmp_path / "merged"))["files"]


@pytest.mark.parametrize("commit", COMMITS)
def test_what_was_removed_is_taken_back(old: Callable[[str], OldHome], commit: str) -> None:
    found = old(commit)
    thrown = found.expected["trash"]
    assert sorted(house.put_all_back(found.home)) == sorted(one["kind"] for one in thrown)
    assert house.trash_items(found.home) == []
    now = shown(found.home)
    for kind, listed, key in (
        ("run", "runs", "run"),
        ("adapter", "adapters", "name"),
        ("evaluation", "evaluations", "name"),
    ):
        names = {one["name"] for one in thrown if one["kind"] == kind}
        assert names and names <= {one[key] for one in now[listed]}
    assert len(now["conversations"]) == len(found.expected["conversations"]) + 1


@pytest.mark.parametrize("commit", COMMITS)
def test_runs_are_checked_renamed_and_repeated(old: Callable[[str], OldHome], commit: str) -> None:
    found = old(commit)
    assert {one["run"] for one in house.printed("runs", "check", code=1) if not one["intact"]} == {"older"}
    house.printed("runs", "check", "--repair")
    assert all(one["intact"] for one in house.printed("runs", "check"))
    house.printed("runs", "rename", "finished-torch", "renamed 改名")
    assert (found.home / "runs" / "again" / "made_from").read_text("utf-8").strip() == "renamed 改名"
    again = json.loads((found.home / "runs" / "several-a" / "asked.json").read_text("utf-8"))
    made = house.make_runs(found.home, [{**again, "name": "repeated", "backend": USABLE[0]}])
    assert house.train(found.home, made)[0][-1]["event"] == "finished"
