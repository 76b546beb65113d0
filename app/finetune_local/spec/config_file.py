"""Config files of runs: reading them, writing the explicit settings of a run as TOML, and their JSON schema.

A file describes one run, or one for each of its [[adapters]].
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import DEFAULT_METHOD, DEFAULT_OBJECTIVE, RunSpec, as_tables, parse_spec
from finetune_local.spec.tuners import presets, tuners
from finetune_local.spec.walk import keyed
from finetune_local.system.errors import SpecError
from finetune_local.system.fields import Settings
from finetune_local.system.messages import Message, msg, system_reason
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object, parse_toml, read_bounded

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def read_config(path: Path) -> dict[str, Any]:
    """The tables of a run.toml or a run.json; it may be a pipe. Raises SpecError with file and line."""
    try:
        text = read_bounded(path, pipes=True)
        return parse_json_object(text) if path.suffix == ".json" else parse_toml(text)
    except OSError as error:
        raise SpecError(
            msg(
                "--config {path}: {error}. Use a run.toml, or a run's run.json.",
                path=path,
                error=system_reason(error),
            )
        ) from None
    except ForeignTextError as error:
        raise SpecError(
            msg("--config {path}: {error}. Expected tables such as [model] and [training].", path=path, error=error)
        ) from None


def sections(tables: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The tables of each run in a config: one, or one per [[adapters]] section, which are trained together on one base.

    Settings outside the sections apply to all; a section's [method] replaces the shared one. Raises SpecError.
    """
    shared = {key: value for key, value in tables.items() if key != "adapters"}
    if "adapters" not in tables:
        return [shared]
    listed = tables["adapters"]
    if not isinstance(listed, list) or not listed or not all(isinstance(part, Mapping) for part in listed):
        raise SpecError(
            msg("{where}: 'adapters' must be sections: one [[adapters]] for each adapter to train.", where=where)
        )
    result = []
    for number, part in enumerate(listed, 1):
        if wrong := sorted({"model", "backend", "device"} & set(part)):
            raise SpecError(
                msg(
                    "{where}: [[adapters]] number {number} has '{name}', but all share one base: write it outside the "
                    "sections.",
                    where=where,
                    number=number,
                    name=wrong[0],
                )
            )
        own = dict(shared)
        for key, value in part.items():
            both_tables = isinstance(value, Mapping) and isinstance(own.get(key), Mapping) and key != "method"
            own[key] = {**own[key], **value} if both_tables else value
        result.append(own)
    return result


def section_name(number: int, name: object) -> Message:
    """The name of one of several [[adapters]] in messages, counted from 1."""
    return msg("[[adapters]] number {number}", number=number) + (msg(" ('{name}')", name=name) if name else "")


def explicit_tables(spec: RunSpec) -> dict[str, object]:
    """The settings that differ from their defaults, as plain tables; parse_spec() of them returns the spec."""
    keys = {"method": {"key": spec.method.key}, "objective": {"key": spec.objective.key}}
    usual, found = as_tables(parse_spec(keys, "defaults")), dict[str, Any]()
    for name, value in as_tables(spec).items():
        if not isinstance(value, dict):
            if value != usual[name]:
                found[name] = value
        elif chosen := {key: inner for key, inner in value.items() if inner != usual[name].get(key)}:
            found[name] = chosen
    found["method"] = {"key": spec.method.key, **found.get("method", {})}
    if spec.objective.key != DEFAULT_OBJECTIVE:
        found["objective"] = {"key": spec.objective.key, **found.get("objective", {})}
    return found


def flattened(tables: Mapping[str, Any]) -> dict[str, object]:
    """Nested tables by dotted path: {"training": {"seed": 1}} becomes {"training.seed": 1}."""
    found: dict[str, Any] = {}
    for name, value in keyed(tables).items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            found[str(name)] = value
    return found


def as_toml(tables: Mapping[str, Any]) -> str:
    """Tables of a run as run.toml for --config; None is left out, since TOML has no null."""
    lines = [
        f"{name} = {_value(value)}" for name, value in tables.items() if not _is_table(value) and value is not None
    ]
    for name, table in tables.items():
        if _is_table(table) and (inner := {key: value for key, value in table.items() if value is not None}):
            lines += ["", f"[{name}]", *(f"{key} = {_value(value)}" for key, value in inner.items())]
    return "\n".join(lines).strip() + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_value(str(key))} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    # Strings, numbers and truth values are written as in JSON, but for one control character that TOML refuses.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


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
    """Schema of a key, or of a table with one of the keys that share a group of settings."""
    options: list[dict[str, Any]] = [{"enum": keys}]
    for kind, names in groups:
        table = kind.model_json_schema()
        table["properties"] = {"key": {"enum": names}, **table.get("properties", {})}
        table["required"] = ["key"]
        options.append(table)
    return {"oneOf": options, "default": default}
