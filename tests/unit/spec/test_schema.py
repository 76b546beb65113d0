"""The JSON schema knows what the parser knows."""

from __future__ import annotations

from finetune_local.spec.config_file import run_schema
from finetune_local.spec.objectives import objectives
from finetune_local.spec.tuners import presets
from finetune_local.spec.walk import spec_fields


def test_every_setting_is_in_the_schema() -> None:
    schema = run_schema()
    tables = {name: schema["$defs"][f"{name.title()}Settings"]["properties"] for name in ("model", "data", "training")}
    for keyed in ("method", "objective"):
        options = schema["properties"][keyed]["oneOf"]
        tables[keyed] = {name: value for option in options for name, value in option.get("properties", {}).items()}
    for path, field in spec_fields():
        table, _, name = path.rpartition(".")
        assert name in (tables[table] if table else schema["properties"]), path
        if table in ("model", "data", "training"):
            assert tables[table][name]["description"] == field.description


def test_an_objective_is_a_name_or_one_table() -> None:
    options = run_schema()["properties"]["objective"]["oneOf"]
    assert options[0]["enum"] == list(objectives())
    assert [option["properties"]["key"]["enum"] for option in options[1:]] == [[key] for key in objectives()]


def test_a_method_is_a_name_or_one_table_with_its_own_settings() -> None:
    options = run_schema()["properties"]["method"]["oneOf"]
    assert options[0]["enum"] == list(presets())
    keys = [key for option in options[1:] for key in option["properties"]["key"]["enum"]]
    assert sorted(keys) == sorted(presets())
    assert all(option["additionalProperties"] is False for option in options[1:])
