"""What differs between the settings of several runs: the rows of a comparison, and nothing that is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_local.spec.explicit import flattened
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object
from finetune_local.training.run_folder.runs import Run


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
