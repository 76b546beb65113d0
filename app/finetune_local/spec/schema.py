"""The JSON schema of a run file, generated from the settings, for editors that complete and check TOML and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finetune_local.spec.objectives import objectives
from finetune_local.spec.presets import presets
from finetune_local.spec.run import DEFAULT_METHOD, DEFAULT_OBJECTIVE, RunSpec
from finetune_local.spec.tuners import tuners
from finetune_local.system.fields import Settings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def run_schema() -> dict[str, object]:
    """Schema of run.toml and run.json. A method or an objective is a name, or a table with exactly its own settings."""
    schema = RunSpec.model_json_schema()
    for name in ("MethodSettings", "ObjectiveSettings", "Settings"):
        schema["$defs"].pop(name, None)
    by_tuner = {
        tuner: (kind.settings, [m.key for m in presets().values() if m.tuner == tuner])
        for tuner, kind in tuners().items()
    }
    by_objective = {key: (objective.settings, [key]) for key, objective in objectives().items()}
    schema["properties"]["method"] = _named_or_table(list(presets()), by_tuner.values(), DEFAULT_METHOD)
    schema["properties"]["objective"] = _named_or_table(list(objectives()), by_objective.values(), DEFAULT_OBJECTIVE)
    return {"$schema": DIALECT, **schema, "title": "finetune-local run"}


def _named_or_table(
    keys: list[str], groups: Iterable[tuple[type[Settings], list[str]]], default: str
) -> dict[str, object]:
    """A key, or a table with one of the keys that share a group of settings."""
    options: list[dict[str, Any]] = [{"enum": keys}]
    for kind, names in groups:
        table = kind.model_json_schema()
        table["properties"] = {"key": {"enum": names}, **table.get("properties", {})}
        table["required"] = ["key"]
        options.append(table)
    return {"oneOf": options, "default": default}
