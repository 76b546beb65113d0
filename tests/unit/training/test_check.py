"""`runs check`: what is found of a run, what is mended, and what a kill after its last word left undone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from finetune_local.adapter_format import CONFIG, WEIGHTS, read_adapter, write_adapter
from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.cli.main import cli
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.run import parse_spec
from finetune_local.system import checksums
from finetune_local.system.errors import DiskFailed
from finetune_local.system.files import write_text
from finetune_local.system.paths import Home
from finetune_local.training.checkpoints import checkpoint
from finetune_local.training.checkpoints.checkpoint import publish_checkpoint
from finetune_local.training.events import Finished, Note, Validation
from finetune_local.training.run_folder import check, runs, tidy
from finetune_local.workspace import adapters

PLAN = AdapterPlan("lora", "low_rank", LowRankSettings(rank=2), (Target("model.layers.0.mlp.up_proj", 4, 6),))


def saved(run: runs.Run, step: int) -> Path:
    tensors = {
        f"base_model.model.model.layers.0.mlp.up_proj.lora_{name}.weight": np.full(shape, step, np.float32)
        for name, shape in (("A", (2, 4)), ("B", (6, 2)))
    }
    identity = json.dumps({"base": {"name": "b", "config_sha256": "0", "tokenizer_sha256": "0"}, "method": "lora"})
    state = checkpoint.LoopState(step=step)
    return checkpoint.save(
        run.checkpoints,
        PLAN,
        tensors,
        {"x": np.zeros(3)},
        state,
        "b",
        lambda place: write_text(place / IDENTITY, identity),
    )


@pytest.fixture
def run(home: Home) -> runs.Run:
    """One that has finished after six steps, with two checkpoints and an adapter."""
    made = runs.create(home, parse_spec({"name": "mine", "data": {"files": ["/x/d.jsonl"]}}, "test"))
    saved(made, 3)
    publish_checkpoint(made, saved(made, 6))
    made.data.mkdir()
    write_text(made.data / "train.ids", "rows")
    checksums.write(made.data)
    end = Finished(reason="all steps done", summary={"steps": 6, "mergeable": True, "first_loss": 1.5})
    made.append(end)
    tidy.write_report(made, end)
    return made


def test_a_run_that_is_as_it_was_written(run: runs.Run) -> None:
    found = check.check(run)
    assert found.findings == [] and found.intact
    assert found.checkpoints == ["step-000003", "step-000006"] and found.summed == 2


@pytest.mark.parametrize("tool", ["sha256sum", "shasum"])
def test_the_checksums_can_be_checked_without_the_app(run: runs.Run, tool: str) -> None:
    command = [tool, *(["-a", "256"] if tool == "shasum" else []), "-c", checksums.SUMS]
    for folder in (run.checkpoints / "step-000006", run.adapter, run.data):
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
        except FileNotFoundError:
            pytest.skip(f"no {tool} here")
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_damaged_checkpoint_is_moved_away_and_kept(run: runs.Run) -> None:
    (run.checkpoints / "step-000006" / WEIGHTS).write_bytes(b"")
    found = check.check(run)
    assert [(one.place, one.kind, one.repaired) for one in found.findings] == [
        ("checkpoints/step-000006", "damaged", False)
    ]
    assert "continues from step-000003" in found.findings[0].remedy and not found.intact
    assert check.check(run, repair=True).intact
    assert (run.folder / "damaged" / "step-000006" / WEIGHTS).exists()
    assert check.check(run).findings == []


def test_where_none_is_intact_nothing_is_moved(run: runs.Run) -> None:
    for place in checkpoint.every(run.checkpoints):
        (place / checkpoint.OPTIMIZER).unlink()
    found = check.check(run, repair=True)
    assert not found.intact and len(checkpoint.every(run.checkpoints)) == 2


def test_one_of_a_newer_version_is_called_that(run: runs.Run) -> None:
    place = run.checkpoints / "step-000006"
    values = dataclasses.asdict(checkpoint.LoopState(step=6)) | {"new_counter": 1}
    checksums.rewrite(place, checkpoint.STATE, json.dumps(values))
    (finding,) = check.check(run).findings
    assert finding.kind == "newer" and "update" in finding.problem


def test_settings_of_a_newer_version_are_called_that(run: runs.Run) -> None:
    file = run.folder / "run.json"
    file.write_text(file.read_text("utf-8").replace('"seed"', '"seed_two": 1, "seed"'), "utf-8")
    (finding,) = check.check(run).findings
    assert (finding.place, finding.kind) == ("run.json", "newer") and "update to resume" in finding.problem


@pytest.mark.parametrize("text", ["", "{", "[]", "{}\0", '{"model": 3}', "\udcff"])
def test_damaged_settings(run: runs.Run, text: str) -> None:
    (run.folder / "run.json").write_text(text, "utf-8", "surrogateescape")
    (finding,) = check.check(run).findings
    assert (finding.place, finding.kind) == ("run.json", "damaged")


@pytest.mark.parametrize("summed", [True, False])
def test_a_damaged_adapter_is_made_again(run: runs.Run, summed: bool) -> None:
    before = read_adapter(run.adapter)[1]
    (run.adapter / WEIGHTS).write_bytes((run.adapter / WEIGHTS).read_bytes()[: -1 if summed else 20])
    if not summed:
        (run.adapter / checksums.SUMS).unlink()
    assert [one.place for one in check.check(run).findings] == ["adapter"]
    assert check.check(run, repair=True).intact
    after = read_adapter(run.adapter)[1]
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert checksums.problem(run.adapter, (CONFIG, WEIGHTS)) is None


def test_a_checkpoint_without_its_optimizer_still_has_the_adapter(run: runs.Run) -> None:
    before = read_adapter(run.adapter)[1]
    (run.adapter / WEIGHTS).write_bytes(b"")
    (run.checkpoints / "step-000006" / checkpoint.OPTIMIZER).write_bytes(b"")
    assert check.check(run, repair=True).intact
    after = read_adapter(run.adapter)[1]
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_an_adapter_whose_checkpoint_is_gone_is_left_as_it_is(run: runs.Run) -> None:
    (run.adapter / WEIGHTS).write_bytes(b"")
    (run.checkpoints / "step-000006" / WEIGHTS).write_bytes(b"")
    found = check.check(run, repair=True)
    assert not found.intact and (run.adapter / WEIGHTS).read_bytes() == b""


def test_a_foreign_adapter_has_no_checksums(tmp_path: Path) -> None:
    write_adapter(tmp_path, PLAN, {n: np.zeros(s, np.float32) for n, s in _shapes().items()}, "b")
    save_file({n: np.ones(s, np.float32) for n, s in _shapes().items()}, tmp_path / WEIGHTS)
    assert read_adapter(tmp_path)[0].targets == PLAN.targets


def _shapes() -> dict[str, tuple[int, ...]]:
    return {
        f"base_model.model.model.layers.0.mlp.up_proj.lora_{n}.weight": s for n, s in (("A", (2, 4)), ("B", (6, 2)))
    }


def test_damaged_events_are_counted_and_half_a_line_is_cut_off(run: runs.Run) -> None:
    content = run.events_file.read_bytes()
    run.events_file.write_bytes(b"\0" * 40 + b"\n[1]\n" + content + b'{"event": "no')
    found = check.check(run)
    assert [one.kind for one in found.findings] == ["untidy", "damaged"] and "2 of its lines" in found.findings[
        1
    ].problem
    check.check(run, repair=True)
    assert run.events_file.read_bytes().endswith(content)


@pytest.mark.parametrize(
    "line",
    ['{"event": "finished", "reason": "r", "summary": "s"}', '{"event": "validation", "step": "x", "loss": 1, "best": true}',
     '{"event": "note", "text": null}', '{"event": "step"}', '{"event": ["note"]}', "7"],
)  # fmt: skip
def test_lines_that_are_no_events_are_passed_over(run: runs.Run, line: str) -> None:
    run.events_file.write_bytes(run.events_file.read_bytes() + line.encode() + b"\n")
    run.append(Note(text="t"))
    assert [type(event) for event in run.history()] == [Finished, Note]


def test_rows_are_looked_at(run: runs.Run) -> None:
    (run.data / "train.ids").write_text("rowz", "utf-8")
    (finding,) = check.check(run, repair=True).findings
    assert finding.place == "data" and "`resume` rebuilds it" in finding.remedy


def test_what_a_kill_after_the_last_word_left_undone_is_done(run: runs.Run) -> None:
    (run.folder / "report.md").unlink()
    run.reserve_file.write_bytes(b"0")
    (run.folder / ".writing-report.md").write_text("half", "utf-8")
    (run.checkpoints / ".writing-gone-step-000001").mkdir()
    run.worker_file.write_text('{"pid": 1073741824, "started": 1.0}', "utf-8")
    assert len(tidy.untidy(run)) == 5
    assert len(check.check(run).findings) == 5
    assert tidy.complete(run) and tidy.untidy(run) == []
    assert "| mergeable | True |" in (run.folder / "report.md").read_text("utf-8")
    assert not run.worker_file.exists() and not list(run.checkpoints.glob(".writing-*"))


def test_a_run_with_another_name_or_place_is_as_whole(run: runs.Run, home: Home) -> None:
    made = "| run | mine |\n| adapter | /elsewhere/mine/adapter |\n"
    end = Finished(reason="all steps done", summary={"run": "mine", "adapter": "/elsewhere/mine/adapter", "steps": 6})
    run.append(end)
    write_text(run.folder / "report.md", f"# mine\n\n| | |\n|---|---|\n{made}| steps | 6 |\n")
    copied = runs.Run(home.runs / "copied")
    shutil.copytree(run.folder, copied.folder)
    assert check.check(copied).findings == []
    renamed = adapters.rename_run(run, "other", home)
    assert check.check(renamed).findings == []
    assert "| run | mine |" in (renamed.folder / "report.md").read_text("utf-8")  # people may have written in it


def test_looking_at_runs_does_it_too(run: runs.Run, home: Home) -> None:
    for asked in (["runs"], ["runs", "show", "mine"], ["resume", "mine"]):
        (run.folder / "report.md").unlink()
        assert CliRunner().invoke(cli, [*asked, "--home", str(home.root)]).exit_code == 0
        assert (run.folder / "report.md").exists(), asked


def test_a_report_that_the_user_changed_is_left_alone(run: runs.Run, home: Home) -> None:
    report = run.folder / "report.md"
    report.write_text(report.read_text("utf-8") + "\nMy own note.\n", "utf-8")
    assert tidy.untidy(run) == []
    assert CliRunner().invoke(cli, ["runs", "--home", str(home.root)]).exit_code == 0
    assert "My own note." in report.read_text("utf-8")


def test_a_report_of_an_earlier_end_is_written_anew(run: runs.Run) -> None:
    (run.folder / "report.md").write_text("of step 3", "utf-8")
    run.worker_file.write_text('{"pid": 1073741824, "started": 1.0}', "utf-8")
    assert tidy.complete(run) == ["worker.json", "report.md"]
    assert "| mergeable | True |" in (run.folder / "report.md").read_text("utf-8")


def test_nothing_is_done_while_a_worker_has_the_run(run: runs.Run) -> None:
    (run.folder / "report.md").unlink()
    code = (
        "import sys, time; from pathlib import Path; from finetune_local.training.run_folder.runs import Run\n"
        "with Run(Path(sys.argv[1])).locked() as mine:\n    print(mine, flush=True)\n    sys.stdin.read()"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", code, str(run.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
    )
    assert held.stdout is not None and held.stdin is not None
    with held:
        assert held.stdout.readline() == "True\n"
        assert tidy.complete(run) == [] and check.check(run, repair=True).findings == []
        held.stdin.close()
    assert tidy.complete(run) == ["report.md"]


def test_the_verb(run: runs.Run, home: Home) -> None:
    run.append(Validation(step=6, loss=1.0, best=True))
    asked = ["runs", "check", "--home", str(home.root)]
    done = CliRunner().invoke(cli, [*asked, "--json"], standalone_mode=False)
    (told,) = json.loads(done.stdout)
    assert done.return_value == 0 and told["intact"] and told["checkpoints"] == ["step-000003", "step-000006"]
    (run.checkpoints / "step-000003" / checkpoint.STATE).write_text("{}", "utf-8")
    done = CliRunner().invoke(cli, [*asked, "mine"], standalone_mode=False)
    assert (
        done.return_value == 1
        and "NOT INTACT" in done.stdout
        and "step-000003: state.json has changed since it was" in done.stdout
    )
    assert CliRunner().invoke(cli, [*asked, "--repair"], standalone_mode=False).return_value == 0
    assert CliRunner().invoke(cli, asked, standalone_mode=False).return_value == 0


def test_a_run_whose_disk_fails_keeps_the_others_from_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "three"):
        runs.create(home, parse_spec({"name": name, "data": {"files": ["d.jsonl"]}}, ""))

    def failing(run: runs.Run, *, repair: bool = False) -> check.Checked:
        if run.name == "two":
            raise DiskFailed("two: the disk failed.")
        return check.Checked(run.name, run.process_state())

    monkeypatch.setattr(check, "check", failing)
    found = {one.run: one for one in check.check_each(runs.every(home), repair=True)}
    assert [found[name].intact for name in ("one", "two", "three")] == [True, False, True]
    assert found["two"].findings[0].problem == "two: the disk failed"
