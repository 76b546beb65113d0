"""The explicit settings of a spec, as a user would write them in a file; tables as TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from finetune_local.spec.run import DEFAULT_OBJECTIVE, RunSpec, as_tables, parse_spec
from finetune_local.spec.walk import keyed


def explicit_tables(spec: RunSpec) -> dict[str, Any]:
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
