"""A run's settings as somebody begins another run from them: what the user set, without what was chosen by itself.

Automatic values depend on the data and the machine, so they are left to be chosen anew. asked.json says what the user set; in a
run that has none, the notes before its first step name the values that were automatic.
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
    """`rest` is {dotted path: value} of all that was set beside the base, the data, the method, the goal and the name."""

    model: str
    data: dict[str, Any]
    method: str
    goal: str
    rest: dict[str, Any]


def settings_of(run: Run) -> Settings:
    """What the user set of a run. Raises SpecError where its files are damaged."""
    spec, tables = _asked(run)
    flat = flattened(tables)
    rest = {
        path: value
        for path, value in flat.items()
        if not path.startswith("data.") and path not in ("name", "goal", "model.id", "method.key")
    }
    data = {path.partition(".")[2]: value for path, value in flat.items() if path.startswith("data.")}
    return Settings(spec.model.id, data, spec.method.key, spec.goal, rest)


def _asked(run: Run) -> tuple[RunSpec, dict[str, Any]]:
    if not run.asked_file.exists():
        spec = run.spec
        return spec, _without_automatic(explicit_tables(spec), as_tables(spec), _noted(run))
    try:
        tables = read_json_object(run.asked_file)
    except (OSError, ForeignTextError) as error:
        raise SpecError(
            msg(
                "{asked_file}: cannot be read ({error}). Delete it: what the user set is then told from run.json.",
                asked_file=run.asked_file,
                error=error,
            )
        ) from None
    return parse_spec(tables, str(run.asked_file)), tables


def _noted(run: Run) -> dict[str, object]:
    """Automatic values by dotted path, as the notes before the first step have them."""
    found: dict[str, object] = {}
    for line in run.lines():
        event = EVENTS.read(line)
        if isinstance(event, Step):
            break
        if isinstance(event, Note) and event.setting:
            found[event.setting] = event.value
    return found


def _without_automatic(
    given: Mapping[str, Any], resolved: Mapping[str, Any], noted: Mapping[str, object]
) -> dict[str, object]:
    """`given` without the values that a note announced, unless they were changed since (a run that was trained further)."""
    flat = flattened(resolved)
    automatic = {path for path, value in noted.items() if flat.get(path) == value}
    if "backend" in automatic:
        automatic.add("device")  # the first one of an automatic backend
    found: dict[str, Any] = {}
    for name, value in given.items():
        if not isinstance(value, Mapping):
            if name not in automatic:
                found[name] = value
        elif kept := {key: inner for key, inner in value.items() if f"{name}.{key}" not in automatic}:
            found[name] = kept
    return found


@dataclass(frozen=True)
class Difference:
    """A setting by its dotted path, and its value in each run; None where it is open or the run's method has no such setting."""

    path: str
    values: tuple[Any, ...]


def differences(runs: Sequence[Run]) -> list[Difference]:
    """The settings in which runs differ, in the order of run.json; a run's name is none. Raises SpecError for a damaged one."""
    flat = [flattened(tables_of(run)) for run in runs]
    paths = dict.fromkeys(path for settings in flat for path in settings if path != "name")
    found = [Difference(path, tuple(settings.get(path) for settings in flat)) for path in paths]
    return [row for row in found if any(value != row.values[0] for value in row.values)]


def tables_of(run: Run) -> dict[str, object]:
    """run.json as it stands, of whatever version; raises SpecError where it is damaged."""
    file = run.folder / "run.json"
    try:
        return read_json_object(file)
    except (OSError, ForeignTextError) as error:
        raise SpecError(
            msg("{file}: cannot be read ({error}). The run cannot be compared.", file=file, error=error)
        ) from None
