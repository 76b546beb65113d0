"""A config file with one run, or with one for each of its [[adapters]]."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.system.errors import SpecError
from finetune_local.system.messages import Message, msg, system_reason
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object, parse_toml, read_bounded


def read_config(path: Path) -> dict[str, Any]:
    """The tables of a run.toml or a run.json; it may be a pipe. Raises SpecError with file and line."""
    try:
        text = read_bounded(path, pipes=True)
        return parse_json_object(text) if path.suffix == ".json" else parse_toml(text)
    except OSError as error:
        raise SpecError(
            msg(
                "--config {path}: {error}. Give a run.toml, or the run.json of a run.",
                path=path,
                error=system_reason(error),
            )
        ) from None
    except ForeignTextError as error:
        raise SpecError(
            msg("--config {path}: {error}. Expected are tables such as [model] and [training].", path=path, error=error)
        ) from None


def sections(tables: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The tables of each run of a config: one, or one for each of its [[adapters]], which are trained at once on one base.

    What stands outside the sections holds for all; a section's [method] replaces the shared one. Raises SpecError.
    """
    shared = {key: value for key, value in tables.items() if key != "adapters"}
    if "adapters" not in tables:
        return [shared]
    listed = tables["adapters"]
    if not isinstance(listed, list) or not listed or not all(isinstance(part, Mapping) for part in listed):
        raise SpecError(
            msg("{where}: 'adapters' should be sections, one [[adapters]] for each adapter to be trained.", where=where)
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
    """What messages call one of several [[adapters]], counted from 1."""
    return msg("[[adapters]] number {number}", number=number) + (msg(" ('{name}')", name=name) if name else "")
