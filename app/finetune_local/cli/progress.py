"""Shows a run's events: a progress bar on a terminal, plain lines elsewhere, JSON lines with --json."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from finetune_local.cli.common import duration, emit, megabytes
from finetune_local.training.events import (
    Checkpoint,
    Event,
    Failed,
    Finished,
    Note,
    Phase,
    Sample,
    Started,
    Step,
    StoppedByUser,
    Validation,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY = 10
"""Without a terminal: steps per line; the first step is always shown."""


def as_json_lines(events: Iterable[Event]) -> Iterator[Event]:
    """Print each event as a JSON line."""
    for event in events:
        emit(event.as_json())
        yield event


def shown(events: Iterable[Event]) -> Iterator[Event]:
    """Show events as they come: with a bar on a terminal, else as plain lines."""
    if sys.stderr.isatty():
        yield from _live(events)
    else:
        for event in events:
            if worth_a_line(event):
                for line in lines_of(event):
                    click.echo(line, err=True)
            yield event


def worth_a_line(event: Event) -> bool:
    """Whether to show a step: the first, the last and every tenth."""
    return not isinstance(event, Step) or event.step % PLAIN_EVERY == 0 or event.step in (1, event.steps)


def lines_of(event: Event) -> list[str]:
    """An event as lines of text; none for events that are not shown."""
    if isinstance(event, Note):
        return [f"  {event.text}"]
    if isinstance(event, Phase):
        return [f"{event.name} …" if event.done is None else f"{event.name} … {event.done:.0%}"]
    if isinstance(event, Started):
        share = 100 * event.trainable_parameters / max(1, event.total_parameters)
        begun = f", from step {event.step}" if event.step else ""
        return [
            (
                f"training {event.trainable_parameters:,} parameters ({share:.2f} %) for {event.steps} steps on "
                f"{event.backend} ({event.device}, {event.precision}){begun}"
            )
        ]
    if isinstance(event, Step):
        return [
            (
                f"step {event.step}/{event.steps}  loss {event.loss:.4f}  rate {event.learning_rate:.2e}  "
                f"{event.tokens_per_second:.0f} tokens/s  {duration(event.seconds_left)} left  "
                f"peak {megabytes(event.peak_memory_bytes)}"
            )
        ]
    if isinstance(event, Validation):
        more = "".join(f", {name} {value:.4g}" for name, value in event.metrics.items())
        return [
            f"validation loss {event.loss:.4f}{more} after step {event.step}{' (best so far)' if event.best else ''}"
        ]
    if isinstance(event, Sample):
        return [f"  asked: {_short(event.prompt)}", f"  answer after step {event.step}: {_short(event.answer)}"]
    return []


def _short(text: str) -> str:
    flat = " ⏎ ".join(text.strip().splitlines())
    return flat if len(flat) <= 160 else flat[:157] + "…"


def _live(events: Iterable[Event]) -> Iterator[Event]:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(bar_width=24),
        TextColumn("loss {task.fields[loss]}  val {task.fields[validation]}  {task.fields[speed]}"),
        TextColumn("[dim]{task.fields[left]} left · peak {task.fields[peak]}"),
    )
    from finetune_local.cli.common import console

    with Progress(*columns, console=console(stderr=True), transient=False) as progress:
        task: TaskID | None = None
        for event in events:
            if isinstance(event, Started):
                _print(progress, event)
                task = progress.add_task(
                    "", total=event.steps, completed=event.step, loss="–", validation="–", speed="–", left="–", peak="–"
                )
            elif isinstance(event, Step) and task is not None:
                progress.update(
                    task,
                    completed=event.step,
                    loss=f"{event.loss:.4f}",
                    speed=f"{event.tokens_per_second:.0f} tokens/s",
                    left=duration(event.seconds_left),
                    peak=megabytes(event.peak_memory_bytes),
                )
            elif isinstance(event, Validation) and task is not None:
                progress.update(task, validation=f"{event.loss:.4f}")
                _print(progress, event)
            elif not isinstance(event, Checkpoint | Finished | StoppedByUser | Failed):
                _print(progress, event)
            yield event


def _print(progress: Progress, event: Event) -> None:
    from rich.text import Text

    for line in lines_of(event):
        progress.console.print(Text(line))
