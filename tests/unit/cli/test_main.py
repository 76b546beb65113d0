"""The command line: verbs by listing, errors as sentences with their exit codes, help that loads nothing heavy."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from finetune_local.cli import app
from finetune_local.cli.main import HELPERS, cli, main
from finetune_local.cli.spec_options import spec_from
from finetune_local.gui.window import launch
from finetune_local.spec.run import as_tables, parse_spec
from finetune_local.spec.walk import spec_fields
from finetune_local.system.errors import SpecError, Stopped
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import runs


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_every_file_is_a_verb_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(cli.callback.__code__.co_filename).parent  # type: ignore[union-attr]
    files = {p.stem for p in folder.glob("*.py")} - set(HELPERS) - {"__init__"}
    code, out, _ = run(["--help"], capsys)
    assert code == 0
    assert len(files) > 5
    for name in files:
        assert f"  {name}" in out
        assert run([name, "--help"], capsys)[0] == 0


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom finetune_local.cli.main import main\ntry:\n main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch','mlx','mlx.core','transformers','peft','httpx','rich','gguf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, encoding="utf-8")
    assert done.stdout.splitlines()[-1] == "[]"


def test_options_without_a_verb_train(capsys: pytest.CaptureFixture[str], home: object) -> None:
    code, _, err = run(["--data", "没有 this.jsonl"], capsys)
    assert code == 2
    assert "没有 this.jsonl: file not found" in err
    assert "Traceback" not in err


def test_a_home_that_cannot_be_made_is_the_user_s_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    code, _, err = run(["runs", "--home", str(tmp_path / "file")], capsys)
    assert code == 2
    assert "cannot be created" in err and "--home" in err


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [
        (errno.EACCES, 2, "UserError"),
        (errno.EROFS, 2, "UserError"),
        (errno.ENAMETOOLONG, 2, "UserError"),
        (errno.ENOTDIR, 2, "UserError"),
        (errno.ENOSPC, 1, "DiskFull"),
        (errno.EDQUOT, 1, "DiskFull"),
        (errno.EIO, 1, "DiskFailed"),
        (errno.EMFILE, 1, "DiskFailed"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int, code: int, kind: str
) -> None:
    def refused(**_: object) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/x.gguf")

    monkeypatch.setattr(cli, "main", refused)
    ended, out, err = run(["export", "--json"], capsys)
    assert ended == code
    assert "/somewhere/x.gguf" in err and "Traceback" not in err
    assert json.loads(out)["error"] == kind


def test_answers_that_could_not_be_written_are_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], home: object, tmp_path: Path
) -> None:
    for out, said in ((tmp_path / "none" / "a.jsonl", "not found"), (tmp_path, "this is a folder")):
        code, _, err = run(["evaluate", "--out", str(out)], capsys)
        assert code == 2
        assert said in err


def test_an_error_is_json_where_asked(capsys: pytest.CaptureFixture[str], home: object) -> None:
    code, out, _ = run(["--data", "none.jsonl", "--json"], capsys)
    assert code == 2
    assert json.loads(out.splitlines()[-1])["error"] == "SpecError"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Did you mean 'train'"),
        (["--method", "lroa"], "lora"),
        (["--learning-rte", "1"], "learning-rate"),
        (["--rank", "many", "--data", "x"], "many"),
        (["train"], "no training data"),
    ],
)
def test_mistakes_are_sentences(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], home: object
) -> None:
    code, out, err = run(arguments, capsys)
    assert code == 2
    assert words in out + err
    assert "Traceback" not in err


def test_without_a_word_it_is_the_app_or_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Home
) -> None:
    started: list[tuple[Home, str]] = []
    monkeypatch.setattr(launch, "launch", lambda place, wanted, _say: started.append((place, wanted.show)))
    assert run([], capsys)[0] == 0
    assert started == [(home, "window")]
    monkeypatch.setattr(app, "NEEDS", ("gradio_of_another_machine",))
    code, out, err = run([], capsys)
    assert code == 0 and "Usage" in out and "pip install 'finetune-local[app]'" in err
    code, _, err = run(["app"], capsys)
    assert code == 2 and "pip install 'finetune-local[app]'" in err
    assert len(started) == 1


def test_every_setting_is_an_option_once() -> None:
    from finetune_local.cli.train import command

    flags = [option for parameter in command.params for option in parameter.opts]
    assert len(flags) == len(set(flags))
    assert len(list(spec_fields())) > 40
    for flag in ("--model", "--backend", "--data", "--method", "--precision", "--max-steps", "--epochs", "--max-length",
                 "--batch-size", "--learning-rate", "--rank", "--alpha", "--seed", "--run", "--home", "--json"):  # fmt: skip
        assert flag in flags


def test_options_win_over_the_config(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('[method]\nkey = "dora"\nrank = 4\n[training]\nseed = 1\n', "utf-8")
    spec = spec_from({"training__seed": 2, "data__files": ()}, config)
    assert (spec.training.seed, spec.method.key) == (2, "dora")
    assert spec.method.settings.model_dump()["rank"] == 4
    other = spec_from({"method__key": "full"}, config)
    assert other.method.key == "full"


def test_a_run_json_with_another_method_or_other_epochs(tmp_path: Path) -> None:
    """Its automatic values followed from what is changed, so they are chosen anew."""
    config = tmp_path / "run.json"
    tables = {
        "model": {"precision": "bf16"},
        "method": {"key": "lora", "rank": 4},
        "training": {"epochs": 3.0, "max_steps": 90, "learning_rate": 1e-3, "optimizer": "adamw"},
    }
    config.write_text(json.dumps(tables), "utf-8")
    same = spec_from({"method__key": "lora"}, config)
    assert (same.model.precision, same.training.max_steps, same.training.learning_rate) == ("bf16", 90, 1e-3)
    quantised = spec_from({"method__key": "qlora"}, config)
    assert (quantised.model.precision, quantised.training.optimizer) == ("4-bit", "paged-adamw")
    assert quantised.training.learning_rate == 1e-3
    assert spec_from({"method__key": "qlora", "model__precision": "8-bit"}, config).model.precision == "8-bit"
    assert spec_from({"method__key": "full"}, config).training.learning_rate is None
    longer = spec_from({"training__epochs": 5.0}, config)
    assert (longer.training.epochs, longer.training.max_steps) == (5.0, None)
    config.write_text(json.dumps({"model": {"precision": "4-bit"}, "method": "qlora"}), "utf-8")
    assert spec_from({"method__key": "lora"}, config).model.precision is None
    tables = {"backend": "mlx", "model": {"precision": "4-bit", "quantisation": "affine"}, "method": "qlora"}
    config.write_text(json.dumps(tables), "utf-8")
    assert spec_from({"backend": "mlx"}, config).model.quantisation == "affine"
    for change in ({"backend": "torch"}, {"method__key": "lora"}, {"model__precision": "bf16"}):
        assert spec_from(change, config).model.quantisation == "auto"
    config.write_text(json.dumps({**tables, "model": {"precision": "4-bit", "quantisation": "nf4"}}), "utf-8")
    assert spec_from({"backend": "torch"}, config).model.quantisation == "nf4"
    with pytest.raises(SpecError, match="--quantisation nf4"):
        spec_from({"model__precision": "bf16", "model__quantisation": "nf4"}, config)


@pytest.mark.parametrize(
    "text",
    ['model = "smollm2-135m"', "training = 3", 'method = "qlora"\nmodel = "x"', 'method = {key="lora", settings=5}',
     "method = 5", 'method = ["lora"]', "[training]\nepochs = inf", "[method]\nalpha = nan"],
)  # fmt: skip
def test_mistakes_of_a_config_are_sentences(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "运行 run.toml"
    config.write_text(text, "utf-8")
    for more in ([], ["--model", "x", "--epochs", "2", "--method", "dora"]):
        code, _, err = run(["train", "--config", str(config), *more], capsys)
        assert code == 2, err
        assert "run.toml" in err or "method" in err


def test_parity_takes_its_steps_from_either_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: object
) -> None:
    from finetune_local.cli import parity

    asked: list[tuple[int, Path]] = []

    def curve_of(tables: dict[str, dict[str, int]], _home: object, scratch: Path) -> list[float]:
        asked.append((tables["training"]["max_steps"], scratch))
        return [1.0] * tables["training"]["max_steps"]

    monkeypatch.setattr(parity, "curve_of", curve_of)
    for given, steps in ([], 20), (["--steps", "4"], 4), (["--max-steps", "3"], 3):
        code, out, _ = run(["parity", "--data", "x.jsonl", "--json", *given], capsys)
        assert code == 0
        assert json.loads(out.splitlines()[-1])["steps"] == steps
        assert asked[-1][0] == steps
    assert len({scratch for _, scratch in asked}) == 3  # two at once do not share a folder
    assert not any(scratch.exists() for _, scratch in asked)


def test_parity_is_in_fp32_or_over_one_nf4_base(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: object
) -> None:
    from finetune_local.cli import parity

    held: list[tuple[str, str]] = []

    def curve_of(tables: dict[str, dict[str, str]], _home: object, _scratch: Path) -> list[float]:
        held.append((tables["model"]["precision"], tables["model"]["quantisation"]))
        return [1.0]

    monkeypatch.setattr(parity, "curve_of", curve_of)
    for kind, expected in (("auto", ("fp32", "auto")), ("affine", ("fp32", "auto")), ("nf4", ("4-bit", "nf4"))):
        held.clear()
        asked = ["parity", "--data", "x.jsonl", "--method", "qlora", "--quantisation", kind, "--steps", "1"]
        assert run(asked, capsys)[0] == 0
        assert held == [expected] * 2


def test_json_counts_on_either_side_of_the_verb_within(capsys: pytest.CaptureFixture[str], home: Home) -> None:
    runs.create(home, parse_spec({"name": "一", "data": {"files": ["x"]}}, "test"))
    for arguments in (["runs", "--json", "list"], ["runs", "list", "--json"], ["runs", "--json"]):
        code, out, _ = run(arguments, capsys)
        assert code == 0
        assert json.loads(out)[0]["run"] == "一"
    assert json.loads(run(["runs", "--json", "show", "一"], capsys)[1])["status"] == "new"
    assert json.loads(run(["runs", "stop", "一", "--json"], capsys)[1])["stopped"] is True
    assert json.loads(run(["runs", "remove", "一", "--yes", "--json"], capsys)[1])["removed"] is True


def test_a_stop_leaves_the_summary_as_the_last_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(**_: object) -> None:
        click.echo('{"steps": 3}')
        raise Stopped("stopped after step 3")

    monkeypatch.setattr(cli, "main", stopped)
    code, out, err = run(["train", "--json"], capsys)
    assert (code, out) == (130, '{"steps": 3}\n')
    assert "stopped after step 3" in err


def test_another_objective_forgets_the_settings_of_the_one_in_the_config(tmp_path: Path) -> None:
    config = tmp_path / "run.json"
    tables = {"objective": {"key": "dpo", "beta": 0.3}, "training": {"learning_rate": 1e-4}}
    config.write_text(json.dumps(tables), "utf-8")
    same = spec_from({"objective__key": "dpo", "objective__cache_reference": True}, config)
    assert as_tables(same)["objective"] == {"key": "dpo", "cache_reference": True, "beta": 0.3}
    assert same.training.learning_rate == 1e-4
    other = spec_from({"objective__key": "sft"}, config)
    assert as_tables(other)["objective"] == "sft" and other.training.learning_rate is None
