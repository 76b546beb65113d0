"""The JSON schema knows what the parser knows."""

from __future__ import annotations

from finetune_local.cli.spec_options import spec_fields
from finetune_local.spec.presets import presets
from finetune_local.spec.schema import run_schema


def test_every_setting_is_in_the_schema() -> None:
    schema = run_schema()
    tables = {name: schema["$defs"][f"{name.title()}Settings"]["properties"] for name in ("model", "data", "training")}
    method = {name for option in schema["properties"]["method"]["oneOf"] for name in option.get("properties", {})}
    for path, field in spec_fields():
        table, _, name = path.rpartition(".")
        known = method if table == "method" else tables[table] if table else schema["properties"]
        assert name in known, path
        if table in tables:
            assert tables[table][name]["description"] == field.description


def test_a_method_is_a_name_or_one_table_with_its_own_settings() -> None:
    options = run_schema()["properties"]["method"]["oneOf"]
    assert options[0]["enum"] == list(presets())
    keys = [key for option in options[1:] for key in option["properties"]["key"]["enum"]]
    assert sorted(keys) == sorted(presets())
    assert all(option["additionalProperties"] is False for option in options[1:])
