"""Make run folders from specs: checked here, where a framework may be loaded, or left to the worker to check."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from finetune_local.spec.run import RunSpec
from finetune_local.system.errors import DamagedRun, FinetuneError, UserError
from finetune_local.system.paths import Home, located
from finetune_local.training import check
from finetune_local.training.events import Event, Failed, Note
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.runs import Run


def checked(
    specs: Sequence[RunSpec], home: Home, progress: Callable[[str, float | None], None], made_from: str | None = None
) -> list[tuple[Run, list[Note]]]:
    """Check specs that are to be trained at once, and make a run of each: with the notes for the user, which are its first
    events. `made_from` is the run whose settings they are. Raises UserErrors; all of them are made or none is."""
    begun: list[tuple[Run, list[Note]]] = []
    try:
        for asked, (spec, notes) in zip(specs, check.check_together(specs, home, progress), strict=True):
            found = asked.model_copy(update={"model": asked.model.model_copy(update={"id": spec.model.id})})
            run = runs.create(home, with_absolute_files(spec), asked=with_absolute_files(found), made_from=made_from)
            begun.append((run, notes))
            for told in notes:
                run.append(told)
    except FinetuneError:
        for run, _ in begun:
            runs.delete(run)
        raise
    return begun


def unchecked(spec: RunSpec, home: Home, made_from: str | None = None) -> Run:
    """A run whose worker checks the spec before all else. Raises SpecError for a file that is not there, or a taken name.

    `made_from` is the run whose settings it was begun from, where it is one.
    """
    check.check_files(spec)
    return runs.create(home, with_absolute_files(spec), made_from=made_from)


def forget_untrained(run: Run, last: Event) -> bool:
    """Remove a run that ended before its training by the user's mistake: its name is free again once that is mended."""
    mistaken = isinstance(last, Failed) and last.exit_code == UserError.exit_code and last.error != DamagedRun.code
    if mistaken and not any(run.checkpoints.glob("*")) and run.folder.exists():
        run.wait_for_exit()
        runs.delete(run)
        return True
    return False


def with_absolute_files(spec: RunSpec) -> RunSpec:
    """Paths in run.json hold wherever they are read from."""
    absolute = {
        field: tuple(str(located(name).resolve()) for name in getattr(spec.data, field))
        for field in ("files", "validation_files")
    }
    return spec.model_copy(update={"data": spec.data.model_copy(update=absolute)})
