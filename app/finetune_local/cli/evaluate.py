"""`evaluate`: compare base, few-shot base and tuned model on the same rows."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune_local.cli.common import (
    backend_option,
    console,
    emit,
    home_option,
    json_option,
    model_option,
    note,
    precision_option,
    seed_option,
    table,
)
from finetune_local.cli.spec_options import settings_options
from finetune_local.evaluation.metrics import DEFAULT, Metric, loss_metric, metrics, text_metrics
from finetune_local.spec.run import DataSettings
from finetune_local.system import paths
from finetune_local.system.messages import msg

if TYPE_CHECKING:
    from finetune_local.evaluation.compare import Comparison, Interval
    from finetune_local.evaluation.report import Evaluation

ORDER = 6

SHOWN_ROWS = 5


@click.command("evaluate", short_help="Base, base with examples and tuned model on held-out rows.")
@model_option
@click.option("--adapter", metavar="NAME", default=None, help="Adapter: a run, a name from `adapters`, or a folder.")
@click.option(
    "--data", "data", metavar="FILE", multiple=True, type=click.Path(path_type=Path),
    help="Rows to evaluate on (repeatable). Automatic: the validation rows of the adapter's run.",
)  # fmt: skip
@click.option(
    "--format", "data_format", metavar="NAME", default=None,
    help="Format of the rows. Automatic: as the adapter's run read its data.",
)  # fmt: skip
@settings_options(DataSettings, ("columns", "assistant", "scrub"))
@click.option(
    "--few-shot", metavar="K", type=click.IntRange(0, 100), default=3, show_default=True,
    help="Examples shown to the base in its prompt; 0 leaves that out.",
)  # fmt: skip
@click.option(
    "--examples", metavar="FILE", type=click.Path(path_type=Path), default=None,
    help="Where the examples come from. Automatic: the adapter's training data, else rows of the data itself.",
)  # fmt: skip
@click.option(
    "--metric", type=click.Choice(list(metrics())), default=DEFAULT, show_default=True,
    help="What the verdict rests on; all are measured.",
)  # fmt: skip
@click.option("--limit", metavar="N", type=click.IntRange(1), default=None, help="Evaluate at most this many rows.")
@click.option(
    "--max-tokens", metavar="N", type=click.IntRange(1), default=None,
    help="Longest answer. Automatic: twice the longest reference.",
)  # fmt: skip
@click.option(
    "--template", type=click.Choice(("chat", "raw")), default=None,
    help="The model's chat template, or texts as they are. Automatic: as the adapter was trained.",
)  # fmt: skip
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=None,
    help="Write every answer to this JSONL file.",
)
@seed_option
@backend_option
@precision_option
@home_option
@json_option
def command(
    model: str | None, adapter: str | None, metric: str, out: Path | None, backend: str, precision: str | None,
    home: str | None, as_json: bool, **chosen: Any,
) -> None:  # fmt: skip
    """Did the fine-tune help? Losses and answers of the base, the base with examples, and the tuned model.

    \b
    finetune-local evaluate --adapter my-run
    finetune-local evaluate --adapter my-run --data held_out.jsonl --few-shot 5

    Ranges are 95 % bootstrap intervals over the rows.
    """
    from finetune_local.evaluation.evaluate import run
    from finetune_local.evaluation.report import Choices
    from finetune_local.evaluation.store import ROWS
    from finetune_local.system.errors import SpecError
    from finetune_local.system.files import written_aside
    from finetune_local.system.private import share

    choices = Choices(metric=metric, **chosen)
    if out is not None and (out.is_dir() or not out.parent.is_dir()):  # shown before the work starts, not after
        raise SpecError(
            msg("--out {out}: this is a folder. Choose a file.", out=out)
            if out.is_dir()
            else msg("--out {out}: folder {parent} not found. Choose another file.", out=out, parent=out.parent)
        )
    with _progress() as progress:
        done = run(
            paths.home(home),
            model,
            adapter,
            choices,
            backend=backend,
            precision=precision,
            note=note,
            opening=_loading,
            progress=progress,
        )
    if out is not None:
        with written_aside(out, msg("The answers are kept in {folder} too.", folder=done.saved.folder)) as aside:
            shutil.copyfile(done.saved.folder / ROWS, aside)
        share(out, paths.home(home).root)
    if as_json:
        emit(done.as_json())
    else:
        _show(done.evaluation, metric)
        note(f"kept in {done.saved.folder}")


def _show(result: Evaluation, metric: str) -> None:
    summaries = result.summaries
    shown = [loss_metric(), *text_metrics().values()]
    headings = ("", *(one.short.lower() if one.short.istitle() else one.short for one in shown))
    table(
        headings,
        (
            (_title(name, result), *(_cell(found[one.key], 1 if one.is_loss else 100) for one in shown))
            for name, found in summaries.items()
        ),
        f"{len(result.comparison.rows)} rows; loss per token in nats, the others in percent; 95 % intervals",
    )
    _show_rows(result.comparison, metrics()[metric])
    click.echo(result.verdict.text)


def _show_rows(comparison: Comparison, metric: Metric) -> None:
    """The rows with the largest difference between tuned model and base."""
    tuned = comparison.tuned
    if tuned is None:
        return
    gaps = abs(tuned.values(metric) - comparison.base.values(metric))
    indices = [int(i) for i in (-gaps).argsort(kind="stable")[:SHOWN_ROWS] if gaps[i] > 0]
    cells = (
        (
            _short(comparison.rows[i].prompt[-1].content),
            _short(comparison.rows[i].reference),
            _short(comparison.base.answers[i]),
            _short(tuned.answers[i]),
        )
        for i in indices
    )
    if indices:
        table(("question", "reference", "base", "tuned"), cells, "Where they differ")


def _title(name: str, result: Evaluation) -> str:
    return {"base": "base", "few_shot": f"base + {result.examples} examples", "tuned": "tuned"}[name]


def _cell(value: Interval, scale: int) -> str:
    digits = 3 if scale == 1 else 1
    low, high = value.low * scale, value.high * scale
    return f"{value.mean * scale:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _short(text: str, most: int = 120) -> str:
    flat = " ⏎ ".join(text.strip().splitlines())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar with the time left on a terminal, else one line per phase."""
    if not sys.stderr.isatty():
        shown: set[str] = set()

        def plain(name: str, _done: float) -> None:
            if name not in shown:
                shown.add(name)
                note(f"evaluating {name} …")

        yield plain
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda name, done: bar.update(task, description=name.replace("_", "-"), completed=done)


def _loading(text: str, _done: float | None) -> None:
    if sys.stderr.isatty():
        note(f"{text} …")
