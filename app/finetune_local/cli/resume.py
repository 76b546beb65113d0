"""`resume`: continue a run that was stopped, killed or failed; or watch one that is running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_local.cli.common import emit, home_option, json_option, note
from finetune_local.system import paths
from finetune_local.system.messages import msg

if TYPE_CHECKING:
    from finetune_local.training.run_folder.runs import Run

ORDER = 3


@click.command("resume", short_help="Continue a run that was stopped, killed or failed.")
@click.argument("name", required=False)
@click.option("--max-steps", type=click.IntRange(1), default=None, help="Train to this many steps in all.")
@home_option
@json_option
def command(name: str | None, max_steps: int | None, home: str | None, as_json: bool) -> None:
    """Continue run NAME (the newest unfinished one if no name is given).

    The loss curve continues as if it had never stopped. A run that is still running is shown from here on.
    """
    from finetune_local.cli.train import follow_to_the_end
    from finetune_local.runtime.status import Status
    from finetune_local.system.errors import SpecError, typed
    from finetune_local.training.events import Finished
    from finetune_local.training.run_folder import runs
    from finetune_local.training.run_folder.tidy import complete

    place = paths.home(home)
    if name is None:
        open_runs = [run for run in runs.every(place) if run.status() is not Status.FINISHED]
        if not open_runs:
            raise SpecError(
                msg(
                    "every run in {runs} is finished. Choose one to train it further: resume NAME --max-steps N",
                    runs=place.runs,
                )
            )
        run = open_runs[0]
        note(f"run: {run.name}")
    else:
        run = runs.find(place, name)
    complete(run)
    if max_steps is not None:
        _lengthen(run, max_steps)
    elif run.status() is Status.FINISHED:
        last = run.last_event()
        assert isinstance(last, Finished)
        note(
            f"run '{run.name}' is finished ({last.reason}). To train it further: resume {typed(run.name)} --max-steps N"
        )
        if as_json:
            emit(dict(last.summary))
        return
    follow_to_the_end(run, place, as_json)


def _lengthen(run: Run, max_steps: int) -> None:
    """Let a run train to `max_steps` in all. Raises SpecError if it is running or has done that many already."""
    from finetune_local.system.errors import SpecError, typed
    from finetune_local.training.checkpoints import checkpoint

    if run.alive():
        raise SpecError(
            msg(
                "--max-steps: run '{name}' is being trained. Stop it first: finetune-local runs stop {name2}",
                name=run.name,
                name2=typed(run.name),
            )
        )
    spec = run.spec
    state = checkpoint.counters(run.checkpoints)
    if max_steps <= state.step:
        raise SpecError(
            msg(
                "--max-steps {max_steps}: the run has already done {step} steps. Use a higher number.",
                max_steps=max_steps,
                step=state.step,
            )
        )
    longer: dict[str, int] = {"max_steps": max_steps}
    patience = spec.training.early_stopping
    if patience and state.worse_validations >= patience:
        # A run that stopped early gets the same number of validations again.
        longer["early_stopping"] = state.worse_validations + patience
    run.write_spec(spec.model_copy(update={"training": spec.training.model_copy(update=longer)}))
