"""`train`, the default verb: check the spec, start the worker, show its events, print the result."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune_local.cli.common import duration, emit, home_option, json_option, megabytes, note
from finetune_local.cli.spec_options import SpecCommand, spec_options, specs_from
from finetune_local.system import paths
from finetune_local.system.errors import FinetuneError, Stopped, WorkerDied, typed
from finetune_local.system.messages import join_messages, msg

if TYPE_CHECKING:
    from finetune_local.training.events import Event
    from finetune_local.training.run_folder.runs import Run

ORDER = 2


@click.command("train", cls=SpecCommand, short_help="Fine-tune a model on your data (the default verb).")
@spec_options
@home_option
@json_option
def command(config: Path | None, home: str | None, as_json: bool, **settings: Any) -> None:
    """Fine-tune a model on your data.

    \b
    finetune-local --data my.jsonl
    finetune-local --data chats.json --method qlora --model Qwen/Qwen3-0.6B --epochs 2

    Settings that are not given are chosen from the data and the machine, and printed. Ctrl-C finishes the step and saves.
    A config with several [[adapters]] trains them at once on one base (docs/methods.md).
    """
    from finetune_local.spec.run import DEFAULT_MODEL
    from finetune_local.training.run_folder import follow, runs

    place = paths.home(home)
    specs = specs_from(settings, config)
    if specs[0].model.id == DEFAULT_MODEL and not as_json:
        note(f"model: {DEFAULT_MODEL}, the small default. Pick another with --model NAME (see: finetune-local models)")
    if config is not None and settings.get("name") is None:
        specs = [_with_free_name(spec, place) for spec in specs]
    last_phase = [""]

    def progress(text: str, _done: float | None) -> None:
        if not as_json and text != last_phase[0]:
            last_phase[0] = text
            note(f"{text} …")

    begun: list[Run] = []
    made_from = runs.of_config(config, place) if config is not None else None
    for run, notes in follow.create_checked(specs, place, progress, made_from):
        begun.append(run)
        if not as_json:
            note(f"run: {run.name} ({run.folder})")
            for automatic in notes:
                note(f"  {automatic.text}")
    if len(begun) > 1:
        follow_several(begun, place, as_json)
    else:
        follow_to_the_end(begun[0], place, as_json)


def follow_to_the_end(run: Run, home: paths.Home, as_json: bool) -> None:
    """Start the run's worker, or attach to a running one, and show its events to the end. Raises the error that ended it."""
    from finetune_local.cli.progress import as_json_lines, shown
    from finetune_local.training.run_folder import follow

    if run.alive():
        note(f"run '{run.name}' is being trained already; showing it.")
        position = run.events_end()
    else:
        position = follow.start(run, home)
    events = follow.follow(run, position)
    last: Event | None = None
    with _interrupts([run]) as killed:
        try:
            for event in as_json_lines(events) if as_json else shown(events):
                last = event
        except WorkerDied:
            if not killed:
                raise
            raise _ended_at_once([run]) from None
    assert last is not None
    follow.forget_untrained(run, last)
    summary = getattr(last, "summary", None)
    if as_json and summary is not None:
        emit(summary)
    follow.raise_for(last, run)
    if not as_json and summary is not None:
        _show_summary(summary)


def follow_several(begun: Sequence[Run], home: paths.Home, as_json: bool) -> None:
    """Start one worker for several runs and show their events to the end. Raises the first error once all have ended."""
    from finetune_local.cli.progress import lines_of, worth_a_line
    from finetune_local.training.events import ENDS
    from finetune_local.training.run_folder import follow

    positions = follow.start_all(begun, home)
    last: dict[str, Event] = {}
    problems: list[FinetuneError] = []
    with _interrupts(begun) as killed:
        try:
            for run, event in follow.follow_all(list(zip(begun, positions, strict=True))):
                last[run.name] = event
                if as_json:
                    emit({"run": run.name, **event.as_json()})
                elif worth_a_line(event):
                    for line in lines_of(event):
                        click.echo(f"{run.name}: {line}", err=True)
        except WorkerDied as error:
            unfinished = [run for run in begun if not isinstance(last.get(run.name), ENDS)]
            problems.append(_ended_at_once(unfinished) if killed else error)
    summaries = [summary for event in last.values() if (summary := getattr(event, "summary", None)) is not None]
    if as_json:
        emit({"runs": summaries})
    else:
        for summary in summaries:
            _show_summary(summary)
    for run in begun:
        if isinstance(end := last.get(run.name), ENDS):
            follow.forget_untrained(run, end)
            try:
                follow.raise_for(end, run)
            except FinetuneError as error:
                named = isinstance(error, Stopped) or error.message.values.get("run") in {other.name for other in begun}
                problems.append(error if named else type(error)(msg("run '{run}': {error}", run=run.name, error=error)))
    if problems:
        # An error counts for more than a stop by the user; one that ended all runs is reported once.
        worst = next((problem for problem in problems if not isinstance(problem, Stopped)), problems[0])
        raise type(worst)(join_messages("\n", dict.fromkeys(problem.message for problem in problems)))


def _ended_at_once(begun: Sequence[Run]) -> Stopped:
    from finetune_local.training.run_folder import follow

    return Stopped(
        msg(
            "stopped immediately; progress up to the last checkpoint is saved: {resume}",
            resume=follow.resume_commands(begun),
        )
    )


def _show_summary(summary: Any) -> None:
    validation = f", validation loss {summary['validation_loss']:.4f}" if summary["validation_loss"] is not None else ""
    click.echo(
        f"done: loss {summary['first_loss']:.4f} → {summary['last_loss']:.4f}{validation} in {summary['steps']} steps, "
        f"{duration(summary['seconds'])}, peak {megabytes(summary['peak_memory_bytes'])}"
    )
    click.echo(f"adapter: {summary['adapter']}")
    name = summary["run"]
    click.echo(f"try it:  finetune-local chat --adapter {typed(name)} --compare")
    if summary["mergeable"]:
        click.echo(f"keep it: finetune-local export {typed(name)} --to gguf --out {typed(name + '.gguf')}")
    else:
        click.echo(f"keep it: the folder above; method '{summary['method']}' cannot become part of a merged model")


@contextmanager
def _interrupts(begun: Sequence[Run]) -> Iterator[list[bool]]:
    """Ctrl-C asks the worker to finish its step and save; a second one kills it (the last checkpoint remains).

    Yields a list that is non-empty once the worker was killed.
    """

    pressed, killed = 0, list[bool]()

    def on_interrupt(_number: int, _frame: object) -> None:
        nonlocal pressed
        pressed += 1
        if pressed == 1:
            for run in begun:
                if len(begun) == 1 or run.alive():  # some of several may have ended
                    run.stop_file.touch()
            note("\nfinishing this step and saving … (Ctrl-C again ends it at once)")
        else:
            killed.append(True)
            for run in begun:
                run.kill()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield killed
    finally:
        signal.signal(signal.SIGINT, before)


def _with_free_name(spec: Any, home: paths.Home) -> Any:
    """The spec with a free name: a run.json passed as --config to repeat a run names that run."""
    taken = spec.name and (home.runs / spec.name).exists()
    return spec.model_copy(update={"name": None}) if taken else spec
