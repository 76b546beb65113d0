"""The walk over the settings of a run, from which options, forms, docs and schema are generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal

from pydantic.fields import FieldInfo

from finetune_local.spec.objectives import objective_named, objectives
from finetune_local.spec.run import DEFAULT_OBJECTIVE, RunSpec
from finetune_local.spec.tuners import preset_named, presets, tuners
from finetune_local.system.fields import Settings, setting

METHOD, OBJECTIVE = "method", "objective"
OBJECTIVE_KEY = "objective.key"


def spec_fields() -> Iterator[tuple[str, FieldInfo]]:
    """Every setting of a run by its dotted path ("training.seed", "method.rank"), each path once.

    Includes the settings of all methods and objectives; if several have the same setting, the first declaration.
    """
    for name, field in RunSpec.model_fields.items():
        kind = field.annotation
        if name == METHOD:
            yield from _of_groups(METHOD, [tuner.settings for tuner in tuners().values()])
        elif name == OBJECTIVE:
            yield OBJECTIVE_KEY, _objective_key()
            yield from _of_groups(OBJECTIVE, [objective.settings for objective in objectives().values()])
        elif isinstance(kind, type) and issubclass(kind, Settings):
            yield from _of_groups(name, [kind])
        else:
            yield name, field


def own_fields(method: str, objective: str = DEFAULT_OBJECTIVE) -> dict[str, FieldInfo]:
    """The settings of one method and one objective by dotted path, as declared there."""
    groups = {
        METHOD: tuners()[preset_named(method).tuner].settings,
        OBJECTIVE: objective_named(objective).settings,
    }
    return {path: field for table, kind in groups.items() for path, field in _of_groups(table, [kind])}


def of_one(path: str) -> bool:
    """Whether a setting belongs to certain methods or objectives, not to every run."""
    return path.startswith((f"{METHOD}.", f"{OBJECTIVE}.")) and path != OBJECTIVE_KEY


def owners(path: str) -> list[str]:
    """The methods, or the objectives, that have a setting."""
    table, _, name = path.rpartition(".")
    if table == OBJECTIVE:
        return [key for key, objective in objectives().items() if name in objective.settings.model_fields]
    return [m.key for m in presets().values() if name in tuners()[m.tuner].settings.model_fields]


def _of_groups(table: str, kinds: list[type[Settings]]) -> Iterator[tuple[str, FieldInfo]]:
    seen: set[str] = set()
    for kind in kinds:
        for name, field in kind.model_fields.items():
            if name not in seen:
                seen.add(name)
                yield f"{table}.{name}", field


@cache
def _objective_key() -> FieldInfo:
    """The choice of an objective as a field."""
    field: FieldInfo = setting(
        DEFAULT_OBJECTIVE, help="What training minimises.", group="run", flag="--objective", common=True
    )
    field.annotation = Literal[tuple(objectives())]  # type: ignore[assignment]
    return field


def keyed(tables: Mapping[str, Any]) -> dict[str, object]:
    """Tables of a run with a method or objective given by name turned into a table with its key."""
    return {
        name: {"key": value} if name in (METHOD, OBJECTIVE) and isinstance(value, str) else value
        for name, value in tables.items()
    }
