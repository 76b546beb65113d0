"""What the user set of a run, without what was chosen by itself."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from finetune_local.data.dataset.store import Row, Writer
from finetune_local.spec.config_file import as_toml, explicit_tables
from finetune_local.spec.run import as_tables, parse_spec
from finetune_local.spec.tuners import presets
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import as_message
from finetune_local.system.paths import Home
from finetune_local.training.events import Note, Phase
from finetune_local.training.run_folder import follow, runs
from finetune_local.training.run_folder.forecast import DataFacts, facts_of_prepared
from finetune_local.training.run_folder.settings import settings_of
from training import data as data

TABLES = {
    "name": "first",
    "goal": "quick",
    "device": "cpu",
    "data": {"files": ["/x/我的 data.jsonl"], "validation": 0.2},
    "method": {"key": "qlora", "rank": 4},
    "training": {"learning_rate": 2e-4, "max_steps": 5},
}


@pytest.mark.parametrize("key", list(presets()))
def test_explicit_tables_give_the_spec_back(key: str) -> None:
    spec = parse_spec({**TABLES, "method": {"key": key}}, "test")
    given = explicit_tables(spec)
    assert parse_spec(given, "test") == spec
    assert given["training"] == TABLES["training"] and given["method"] == {"key": key}
    assert "objective" not in given and "model" not in given


def test_toml_is_read_back_as_it_was() -> None:
    spec = parse_spec({**TABLES, "name": 'quote " \\ \x7f 名 \n'}, "test")
    tables = as_tables(spec)
    known = {
        name: {k: v for k, v in t.items() if v is not None} if isinstance(t, dict) else t for name, t in tables.items()
    }
    assert tomllib.loads(as_toml(tables)) == known
    assert parse_spec(tomllib.loads(as_toml(tables)), "test") == spec


def test_what_the_user_set_is_kept_and_nothing_else(home: Home) -> None:
    run = runs.create(home, parse_spec(TABLES, "test"))
    resolved = run.spec.training.model_copy(update={"batch_size": 8, "epochs": 3.0})
    run.write_spec(run.spec.model_copy(update={"training": resolved, "backend": "torch"}))
    found = settings_of(run)
    assert (found.model, found.method, found.goal) == ("smollm2-135m", "qlora", "quick")
    assert found.data == {"files": ["/x/我的 data.jsonl"], "validation": 0.2}
    assert found.rest == {
        "device": "cpu", "method.rank": 4, "training.learning_rate": 2e-4, "training.max_steps": 5,
    }  # fmt: skip


def test_without_that_the_notes_tell_what_was_automatic(home: Home) -> None:
    values = {**TABLES, "backend": "torch", "model": {"id": "m", "precision": "bf16"}}
    values["training"] = {"learning_rate": 2e-4, "max_steps": 30, "batch_size": 8, "seed": 7}
    run = runs.create(home, parse_spec(values, "test"))
    run.user_settings_file.unlink()
    for setting, value in (
        ("backend", "torch"),
        ("model.precision", "bf16"),
        ("training.batch_size", 8),
        ("training.learning_rate", 0.0002),
        ("training.max_steps", 20),  # trained further since
    ):
        run.append(Note.chosen(setting, value, as_message("a reason")))
    found = settings_of(run)
    assert found.rest == {"method.rank": 4, "training.max_steps": 30, "training.seed": 7}
    assert found.model == "m"


def test_what_was_asked_for_is_not_automatic(home: Home) -> None:
    run = runs.create(home, parse_spec({**TABLES, "backend": "torch"}, "test"))
    run.user_settings_file.unlink()
    run.append(Phase(name="checking"))
    run.append(Note(text="backend = torch (you asked for it)"))
    rest = settings_of(run).rest
    assert rest["backend"] == "torch" and rest["device"] == "cpu"


@pytest.mark.parametrize("text", ["{", "[]", '{"training": {"nothing like it": 1}}'])
def test_damage_is_a_sentence(home: Home, text: str) -> None:
    run = runs.create(home, parse_spec(TABLES, "test"))
    run.user_settings_file.write_text(text, "utf-8")
    with pytest.raises(SpecError, match=r"asked\.json"):
        settings_of(run)


def test_the_command_line_keeps_what_was_asked(
    home: Home, tiny: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.parent)
    tables = {"name": "a", "model": {"id": str(tiny)}, "data": {"files": [data.name]}, "training": {"seed": 3}}
    ((run, _),) = follow.create_checked([parse_spec(tables, "test")], home, lambda *_: None)
    assert run.spec.backend != "auto"
    asked = json.loads(run.user_settings_file.read_text("utf-8"))
    assert asked["training"] == {"seed": 3} and "backend" not in asked and "device" not in asked
    assert asked["data"]["files"] == [str(data)]
    assert runs.of_config(run.user_settings_file, home) == "a" and runs.of_config(data, home) is None
    again = follow.create_unchecked(parse_spec({**asked, "name": "b"}, "test"), home, made_from="a")
    assert again.made_from == "a"


def test_the_rows_of_a_run_are_known_without_reading_its_data_again(home: Home) -> None:
    run = runs.create(home, parse_spec(TABLES, "test"))
    assert facts_of_prepared(run.data) is None
    run.data.mkdir()
    for name, lengths in (("train", (3, 9, 4)), ("validation", (5,))):
        with Writer(run.data, name) as store:
            for length in lengths:
                store.add(Row(np.zeros(length, np.int32), np.ones(length, np.bool_)))
    assert facts_of_prepared(run.data) == DataFacts(rows=4, tokens=21, longest=9, held_out=1)
    (run.data / "train.ids").write_bytes(b"\0" * 8)
    assert facts_of_prepared(run.data) is None


def test_an_objective_with_its_settings_comes_back(home: Home) -> None:
    spec = parse_spec({**TABLES, "objective": {"key": "dpo", "beta": 0.3}}, "test")
    run = runs.create(home, spec, as_set=spec)
    assert run.spec.objective == spec.objective
    rest = settings_of(run).rest
    assert (rest["objective.key"], rest["objective.beta"]) == ("dpo", 0.3) and "objective.cache_reference" not in rest
    run.user_settings_file.unlink()
    assert settings_of(run).rest == rest
