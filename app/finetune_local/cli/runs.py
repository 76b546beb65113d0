"""`runs`: list, show, check, stop, rename, remove and restore training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from finetune_local.cli.common import emit, home_option, json_option, note, table
from finetune_local.system import paths
from finetune_local.system.errors import typed

if TYPE_CHECKING:
    from finetune_local.training.run_folder.facts import RunFacts

ORDER = 10


@click.group("runs", short_help="List, show, check, stop, rename and remove runs.", invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def command(context: click.Context, home: str | None, as_json: bool) -> None:
    """List the runs; or use one of the verbs below."""
    context.obj = paths.home(home)
    if context.invoked_subcommand is None:
        _list(context.obj, as_json)


@command.command("list")
@home_option
@json_option
@click.pass_obj
def list_runs(outer: paths.Home, home: str | None, as_json: bool) -> None:
    """List the runs, newest first."""
    _list(paths.home(home) if home else outer, as_json)


@command.command("show")
@click.argument("name")
@home_option
@json_option
@click.pass_obj
def show(outer: paths.Home, name: str, home: str | None, as_json: bool) -> None:
    """Show one run: settings, losses, and the path of its adapter."""
    from finetune_local.spec.run import as_tables
    from finetune_local.training.events import Step, Validation
    from finetune_local.training.run_folder import runs
    from finetune_local.training.run_folder.facts import facts_of
    from finetune_local.training.run_folder.tidy import complete_all

    run = runs.find(paths.home(home) if home else outer, name)
    complete_all([run])
    steps = {e.step: e.loss for e in run.history() if isinstance(e, Step)}
    validations = {e.step: e.loss for e in run.history() if isinstance(e, Validation)}
    facts = {
        **facts_of(run).as_json(),
        "spec": as_tables(run.spec),
        "losses": steps,
        "validation_losses": validations,
    }
    if as_json:
        emit(facts)
        return
    table(["", ""], [[k, v] for k, v in facts.items() if k not in ("spec", "losses", "validation_losses")])
    if steps:
        click.echo(
            f"loss            {_spark(list(steps.values()))}  {min(steps.values()):.3f} … {max(steps.values()):.3f}"
        )
    for step, loss in validations.items():
        click.echo(f"validation loss {loss:.4f} after step {step}")
    click.echo(f"settings        {run.folder / 'run.json'} (give it back with --config to repeat the run)")


@command.command("stop")
@click.argument("name")
@click.option("--finish", is_flag=True, help="End it for good: the adapter as it is then is the result.")
@home_option
@json_option
@click.pass_obj
def stop(outer: paths.Home, name: str, finish: bool, home: str | None, as_json: bool) -> None:
    """Stop a run after its current step, with a checkpoint; `resume` continues it."""
    from finetune_local.training.run_folder import runs

    run = runs.find(paths.home(home) if home else outer, name)
    done = True
    if not run.alive():
        note(f"run '{run.name}' is not running ({run.status()}).")
    else:
        done = runs.ask_to_stop(run, patience=120, finish=finish)
        ended = "has stopped" if done else "will stop after its step"
        later = "its adapter is kept" if finish else f"resume it with: resume {run.name}"
        note(f"run '{run.name}' {ended}; {later}")
    if as_json:
        emit({"run": run.name, "stopped": done, "status": run.process_state().as_json()})


@command.command("rename")
@click.argument("name")
@click.argument("new")
@home_option
@json_option
@click.pass_obj
def rename(outer: paths.Home, name: str, new: str, home: str | None, as_json: bool) -> None:
    """Rename a run and its adapter."""
    from finetune_local.training.run_folder import runs
    from finetune_local.training.run_folder.facts import facts_of
    from finetune_local.workspace import adapters

    place = paths.home(home) if home else outer
    run = adapters.rename_run(runs.find(place, name), new, place)
    if as_json:
        emit(facts_of(run).as_json())
    else:
        note(f"'{name}' is now '{run.name}'")


@command.command("remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--for-good", is_flag=True, help="Delete it at once, so that its room is free: it cannot be taken back.")
@home_option
@json_option
@click.pass_obj
def remove(outer: paths.Home, name: str, yes: bool, for_good: bool, home: str | None, as_json: bool) -> None:
    """Move a run with its checkpoints and its adapter to the trash."""
    from finetune_local.training.run_folder import runs

    place = paths.home(home) if home else outer
    run = runs.find(place, name)
    if not yes:
        what = "Delete" if for_good else "Remove"
        click.confirm(f"{what} {run.folder} with its adapter?", abort=True, err=True)
    thrown = None
    if for_good:
        runs.delete(run)
        note(f"deleted {run.name}")
    else:
        thrown = runs.remove(run, place)
        note(f"'{run.name}' is in the trash. To take it back: finetune-local runs restore {typed(run.name)}")
    if as_json:
        emit({"run": run.name, "removed": True, "trash": str(thrown.place) if thrown else None})


@command.command("restore")
@click.argument("name", required=False)
@home_option
@json_option
@click.pass_obj
def restore(outer: paths.Home, name: str | None, home: str | None, as_json: bool) -> None:
    """Restore the most recently removed run, or the one called NAME."""
    from finetune_local.training.run_folder import runs
    from finetune_local.training.run_folder.facts import facts_of

    run = runs.restore(name, paths.home(home) if home else outer)
    if as_json:
        emit(facts_of(run).as_json())
    else:
        note(f"'{run.name}' is back")


@command.command("check")
@click.argument("name", required=False)
@click.option(
    "--repair", is_flag=True, help="Mend what can be mended; damaged checkpoints are moved away, nothing is deleted."
)
@home_option
@json_option
@click.pass_obj
def check(outer: paths.Home, name: str | None, repair: bool, home: str | None, as_json: bool) -> int:
    """Check a run's files (all runs if no name is given) against their checksums. Exit code 1 if something is damaged."""
    from finetune_local.runtime.status import Status
    from finetune_local.training.run_folder import check as checking
    from finetune_local.training.run_folder import runs

    place = paths.home(home) if home else outer
    if name is not None:
        found = [checking.check(runs.find(place, name), repair=repair)]
    else:
        found = checking.check_each(runs.every(place), repair=repair)
    if as_json:
        emit([one.as_json() for one in found])
    else:
        for one in found:
            proven = f", {one.summed} of them by their checksums" if one.summed else ""
            kept = (
                "being trained"
                if one.state and one.state.status is Status.RUNNING
                else f"checkpoints intact: {len(one.checkpoints)}{proven}"
            )
            click.echo(f"{one.run}: {'nothing is damaged' if one.intact else 'NOT INTACT'} ({kept})")
            for finding in one.findings:
                click.echo(f"  {finding.place}: {finding.problem} → {finding.remedy}")
        bad = sum(not one.intact for one in found)
        note(f"runs checked: {len(found)}, not intact: {bad}")
    return 0 if all(one.intact for one in found) else 1


def _list(home: paths.Home, as_json: bool) -> None:
    from finetune_local.training.run_folder import runs
    from finetune_local.training.run_folder.facts import all_facts
    from finetune_local.training.run_folder.tidy import complete_all

    complete_all(runs.every(home))
    rows = all_facts(home)
    if as_json:
        emit([row.as_json() for row in rows])
    elif not rows:
        note(f"no runs yet in {home.runs}. Begin with: finetune-local --data my.jsonl")
    else:
        columns = ("run", "status", "method", "model", "steps", "last_loss", "validation_loss", "changed")
        table([c.replace("_", " ") for c in columns], [[_cell(row, c) for c in columns] for row in rows])


def _cell(row: RunFacts, column: str) -> str:
    value = getattr(row, column)
    if column == "status" and row.damaged:
        return f"{value} (damaged)"
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _spark(values: list[float], width: int = 60) -> str:
    """A curve as one line of block characters."""
    picked = values if len(values) <= width else [values[i * len(values) // width] for i in range(width)]
    low, high = min(picked), max(picked)
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (v - low) / (high - low + 1e-12)))] for v in picked)
