"""The spec: presets move defaults only, mistakes are sentences, run.json gives the same spec back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_local.spec.config_file import read_config
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.run import as_tables, parse_spec, preset_of
from finetune_local.spec.tuners import presets
from finetune_local.system.errors import SpecError


def settings_of(tables: dict) -> LowRankSettings:
    settings = parse_spec(tables, "test").method.settings
    assert isinstance(settings, LowRankSettings)
    return settings


def test_a_preset_is_only_a_default() -> None:
    spec = parse_spec({"method": "qlora"}, "test")
    assert spec.model.precision == "4-bit"
    assert preset_of(spec, "training.optimizer")
    mine = parse_spec({"method": {"key": "qlora"}, "model": {"precision": "bf16"}}, "test")
    assert mine.model.precision == "bf16"
    assert not preset_of(mine, "model.precision")


def test_dora_is_lora_with_its_magnitude_trained() -> None:
    assert settings_of({"method": "dora"}).use_dora
    assert not settings_of({"method": {"key": "dora", "use_dora": False}}).use_dora


@pytest.mark.parametrize(("scaling", "scale"), [("standard", 2.0), ("rslora", 32 / 4)])
def test_the_scale(scaling: str, scale: float) -> None:
    assert settings_of({"method": {"key": "lora", "rank": 16, "scaling": scaling}}).scale == scale


@pytest.mark.parametrize("key", list(presets()))
def test_tables_give_the_same_spec_back(key: str) -> None:
    spec = parse_spec({"method": key, "data": {"files": ["数据 a.jsonl"]}, "training": {"max_steps": 3}}, "test")
    assert parse_spec(json.loads(json.dumps(as_tables(spec))), "again") == spec


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"method": "lroa"}, ["no method 'lroa'", "Did you mean 'lora'"]),
        ({"method": {"key": "lora", "rnk": 8}}, ["'rnk'", "Did you mean 'rank'"]),
        ({"method": {"key": "lora", "rank": 0}}, ["'rank' is 0", "greater than or equal to 1"]),
        ({"method": {"key": "full", "rank": 4}}, ["'full'", "no setting 'rank'", "train_weights"]),
        ({"training": {"learning_rat": 1}}, ["training.learning_rat", "Did you mean 'learning_rate'"]),
        ({"training": {"batch_size": "many"}}, ["training.batch_size", "'many'"]),
        ({"model": {"precision": "3-bit"}}, ["model.precision", "3-bit"]),
        ({"trainig": {}}, ["'trainig'", "Did you mean 'training'"]),
        ({"objective": "sfft"}, ["no objective 'sfft'", "sft"]),
    ],
)
def test_a_mistake_is_a_sentence(tables: dict, words: list[str]) -> None:
    with pytest.raises(SpecError) as raised:
        parse_spec(tables, "run.toml")
    for word in words:
        assert word in str(raised.value)


def test_an_objective_without_settings_is_written_as_its_name() -> None:
    named, table = (parse_spec({"objective": value}, "test") for value in ("sft", {"key": "sft"}))
    assert named == table and as_tables(named)["objective"] == "sft"
    with pytest.raises(SpecError, match="rank"):
        parse_spec({"objective": {"key": "sft", "rank": 3}}, "test")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(SpecError) as raised:
        parse_spec({"training": {"batch_size": 0, "seed": -1}}, "run.toml")
    assert len(str(raised.value).splitlines()) == 2


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_spec({}, "test").training.seed = 1  # type: ignore[misc]


def test_config_files(tmp_path: Path) -> None:
    toml = tmp_path / "läuf 运行.toml"
    toml.write_text('method = "dora"\n[training]\nmax_steps = 7\n', "utf-8")
    assert parse_spec(read_config(toml), "x").training.max_steps == 7
    broken = tmp_path / "broken.toml"
    broken.write_text("[training\nx", "utf-8")
    with pytest.raises(SpecError, match=r"broken\.toml.*line 1"):
        read_config(broken)
    half = tmp_path / "half.json"
    half.write_text('{"training": {', "utf-8")
    with pytest.raises(SpecError, match=r"half\.json.*line 1"):
        read_config(half)
    with pytest.raises(SpecError, match="No such file"):
        read_config(tmp_path / "none.toml")
