"""What the user set of a run, to start another run from or to compare runs.

Automatic values are left out, because they depend on the data and the machine. asked.json has what the user set; in runs of versions
that did not write it, the notes before the first step name the automatic values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_local.spec.config_file import explicit_tables, flattened
from finetune_local.spec.run import RunSpec, as_tables, parse_spec
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object
from finetune_local.training.events import EVENTS, Note, Step
from finetune_local.training.run_folder.runs import Run


@dataclass(frozen=True)
class Settings:
    """What the user set. `rest` maps dotted paths to values of everything but model, data, method, goal and name."""

    model: str
    data: dict[str, Any]
    method: str
    goal: str
    rest: dict[str, Any]


def settings_of(run: Run) -> Settings:
    """What the user set of a run. Raises SpecError if its files are damaged."""
    spec, tables = _user_set(run)
    flat = flattened(tables)
    rest = {
        path: value
        for path, value in flat.items()
        if not path.startswith("data.") and path not in ("name", "goal", "model.id", "method.key")
    }
    data = {path.partition(".")[2]: value for path, value in flat.items() if path.startswith("data.")}
    return Settings(spec.model.id, data, spec.method.key, spec.goal, rest)


def _user_set(run: Run) -> tuple[RunSpec, dict[str, Any]]:
    if not run.user_settings_file.exists():
        spec = run.spec
        return spec, _without_automatic(explicit_tables(spec), as_tables(spec), _noted(run))
    try:
        tables = read_json_object(run.user_settings_file)
    except (OSError, ForeignTextError) as error:
        raise SpecError(
            msg(
                "{asked_file}: cannot be read ({error}). Delete it: what the user set is then read from run.json.",
                asked_file=run.user_settings_file,
                error=error,
            )
        ) from None
    return parse_spec(tables, str(run.user_settings_file)), tables


def _noted(run: Run) -> dict[str, object]:
    """Automatic values by dotted path, from the notes before the first step."""
    found: dict[str, object] = {}
    for line in run.lines():
        event = EVENTS.read(line)
        if isinstance(event, Step):
            break
        if isinstance(event, Note) and event.setting:
            found[event.setting] = event.value
    return found


def _without_automatic(
    tables: Mapping[str, Any], resolved: Mapping[str, Any], noted: Mapping[str, object]
) -> dict[str, object]:
    """`tables` without the automatic values in `noted`, unless `resolved` has another value now (the user changed it later)."""
    flat = flattened(resolved)
    automatic = {path for path, value in noted.items() if flat.get(path) == value}
    if "backend" in automatic:
        automatic.add("device")  # an automatic backend uses its first device
    found: dict[str, Any] = {}
    for name, value in tables.items():
        if not isinstance(value, Mapping):
            if name not in automatic:
                found[name] = value
        elif kept := {key: inner for key, inner in value.items() if f"{name}.{key}" not in automatic}:
            found[name] = kept
    return found


@dataclass(frozen=True)
class Difference:
    """A setting, by dotted path, and its value in each run; None where it is not set or the run's method has no such setting."""

    path: str
    values: tuple[Any, ...]


def differences(runs: Sequence[Run]) -> list[Difference]:
    """The settings, except the name, in which runs differ, in the order of run.json. Raises SpecError if a run.json is damaged."""
    flat = [flattened(tables_of(run)) for run in runs]
    paths = dict.fromkeys(path for settings in flat for path in settings if path != "name")
    found = [Difference(path, tuple(settings.get(path) for settings in flat)) for path in paths]
    return [row for row in found if any(value != row.values[0] for value in row.values)]


def tables_of(run: Run) -> dict[str, object]:
    """The content of run.json, whichever version wrote it. Raises SpecError if it is damaged."""
    file = run.folder / "run.json"
    try:
        return read_json_object(file)
    except (OSError, ForeignTextError) as error:
        raise SpecError(
            msg("{file}: cannot be read ({error}). The run cannot be compared.", file=file, error=error)
        ) from None
