"""Make run folders from specs: checked here, where a framework may be loaded, or left to the worker to check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from finetune_local.errors import FinetuneError, UserError
from finetune_local.paths import Home
from finetune_local.spec.run import RunSpec
from finetune_local.train import runs, setup
from finetune_local.train.events import Event, Failed, Note
from finetune_local.train.runs import Run


def checked(
    specs: Sequence[RunSpec], home: Home, progress: Callable[[str, float | None], None]
) -> list[tuple[Run, list[str]]]:
    """Check specs that are to be trained at once, and make a run of each: with the notes for the user, which are its first
    events. Raises UserErrors; all of them are made or none is."""
    begun: list[tuple[Run, list[str]]] = []
    try:
        for spec, notes in setup.check_together(specs, home, progress):
            run = runs.create(home, with_absolute_files(spec))
            begun.append((run, notes))
            for text in notes:
                run.append(Note(text=text))
    except FinetuneError:
        for run, _ in begun:
            runs.remove(run)
        raise
    return begun


def unchecked(spec: RunSpec, home: Home) -> Run:
    """A run whose worker checks the spec before all else. Raises SpecError for a file that is not there, or a taken name."""
    setup.check_files(spec)
    return runs.create(home, with_absolute_files(spec))


def forget_untrained(run: Run, last: Event) -> bool:
    """Remove a run that ended before its training by the user's mistake: its name is free again once that is mended."""
    mistaken = isinstance(last, Failed) and last.exit_code == UserError.exit_code
    if mistaken and not any(run.checkpoints.glob("*")) and run.folder.exists():
        run.wait_until_gone()
        runs.remove(run)
        return True
    return False


def with_absolute_files(spec: RunSpec) -> RunSpec:
    """Paths in run.json hold wherever they are read from."""
    absolute = {
        field: tuple(str(Path(name).expanduser().resolve()) for name in getattr(spec.data, field))
        for field in ("files", "validation_files")
    }
    return spec.model_copy(update={"data": spec.data.model_copy(update=absolute)})
