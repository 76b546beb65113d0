"""The JSON schema of a run file, for editors that complete and check TOML and JSON; made from the same fields as all else."""

from __future__ import annotations

from typing import Any

from finetune_local.spec.presets import presets
from finetune_local.spec.run import RunSpec
from finetune_local.spec.tuners import tuners

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def run_schema() -> dict[str, Any]:
    """Schema of run.toml and run.json. A method is a name, or a table with the settings of its family and no others."""
    schema = RunSpec.model_json_schema()
    schema["$defs"].pop("MethodSettings", None)
    schema["$defs"].pop("Settings", None)
    tables: list[dict[str, Any]] = [{"enum": list(presets())}]
    for key, tuner in tuners().items():
        table = tuner.settings.model_json_schema()
        names = [m.key for m in presets().values() if m.tuner == key]
        table["properties"] = {"key": {"enum": names}, **table.get("properties", {})}
        table["required"] = ["key"]
        tables.append(table)
    schema["properties"]["method"] = {"oneOf": tables, "default": "lora"}
    return {"$schema": DIALECT, **schema, "title": "finetune-local run"}
