"""`data inspect`: what is in data files, what a model would see of them, and which tokens it would learn."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from finetune_local.cli import common
from finetune_local.cli.common import home_option, json_option, model_option
from finetune_local.cli.spec_options import settings_from, settings_options
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import DEFAULT_OBJECTIVE, DataSettings
from finetune_local.system.paths import located

if TYPE_CHECKING:
    from rich.text import Text

    from finetune_local.data.encoding.encode import Encoded
    from finetune_local.data.inspect import Piece
    from finetune_local.data.report import Report
    from finetune_local.data.tokenizers.tokenizer import Tokenizer

ORDER = 13

LEARNED_STYLE = "bold green"
REJECTED_SHOWN = 10
BAR_WIDTH = 40
PREVIEW = 3

READING = ("format", "columns", "assistant", "scrub", "template", "validation_files")
"""Settings of how rows are read and encoded."""


@click.group("data")
def command() -> None:
    """Look at training data."""


@command.command("inspect")
@click.argument("files", nargs=-1, metavar="FILE...")
@model_option
@settings_options(DataSettings, READING)
@click.option("--max-length", type=click.IntRange(8), default=None, help="Longest row in tokens. [the model's context]")
@click.option(
    "--show-mask",
    is_flag=False,
    flag_value=str(PREVIEW),
    default=None,
    metavar="[N]",
    help="Print the first N conversations (3) with the learned text in colour, or in ⟦⟧ without colours.",
)
@click.option(
    "--objective",
    type=click.Choice(list(objectives())),
    default=DEFAULT_OBJECTIVE,
    help="What learns from it; other rows are rejected.",
)
@home_option
@json_option
def inspect(
    files: tuple[str, ...],
    model: str | None,
    max_length: int | None,
    show_mask: str | None,
    objective: str,
    home: str | None,
    as_json: bool,
    **reading: Any,
) -> None:
    """Count rows, turns and tokens; list rejected rows with reasons; find duplicates, personal data and speakers; show what is learned."""
    from finetune_local.data.inspect import Inspection

    files, preview = _files_and_preview(files, show_mask)
    settings = settings_from(DataSettings, {**reading, "files": files})
    Inspection(settings, None, 1).check_files()  # before a model is downloaded
    tokenizer, context = _open(model, home)
    look = Inspection(settings, tokenizer, max_length or context, masked=range(preview), objective=objective)
    report = look.whole()
    if as_json:
        shown = [_marked(look.pieces(number)) for number in sorted(look.masks)]
        common.emit({**report.as_json(), **({"preview": shown} if preview else {})})
        return
    _print_report(report)
    for number, row in sorted(look.masks.items()):
        _print_preview(row, look.pieces(number))


def _files_and_preview(files: tuple[str, ...], show_mask: str | None) -> tuple[tuple[str, ...], int]:
    """The files, and how many conversations to print; in `--show-mask chats.jsonl` the word is a file, not a count."""
    preview = 0
    if show_mask is not None:
        preview = int(show_mask) if show_mask.isdecimal() else PREVIEW
        files = files if show_mask.isdecimal() else (show_mask, *files)
    if not files:
        raise click.UsageError("name a data file: finetune-local data inspect my.jsonl")
    return files, preview


def _open(model: str | None, home: str | None) -> tuple[Tokenizer, int]:
    """The tokenizer and the context length. A folder with only a tokenizer is enough; weights are not read."""
    from finetune_local.cli.models import progress_bar
    from finetune_local.data.tokenizers.tokenizer import Tokenizer
    from finetune_local.models.resolve import resolve
    from finetune_local.spec.run import DEFAULT_MODEL
    from finetune_local.system.paths import home as home_of

    folder = located(model) if model else None
    if folder is not None and (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists():
        return Tokenizer.load(folder), 1 << 20
    with progress_bar() as progress:
        found = resolve(model or DEFAULT_MODEL, home_of(home), progress)
    return Tokenizer.load(found.path), found.context_length


def _print_report(report: Report) -> None:
    from rich.text import Text

    screen = common.console()
    for file in report.files:
        screen.print(Text(f"{file.name}: {file.format} in {file.container}, {file.encoding}, {file.bytes:,} bytes"))
    facts: list[tuple[str, object]] = [
        ("rows", f"{report.rows:,}"),
        ("used", f"{report.used:,}"),
        ("rejected", f"{report.rejected_count:,}"),
        ("turns", f"{report.turns:,}"),
        ("tokens", f"{report.tokens:,}"),
        ("learned tokens", f"{report.supervised_tokens:,} ({_percent(report.supervised_tokens, report.tokens)})"),
        ("tokens in a row", f"{report.shortest:,} to {report.longest:,}, half below {report.median:,}"),
        ("longest", report.longest_place),
        ("cut to --max-length", f"{report.truncated:,}"),
        ("duplicates", f"{report.duplicates:,} (kept)"),
        ("also in validation", f"{report.leaks:,}"),
    ]
    if report.personal:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in report.personal.items())
        facts.append(
            ("personal data", kinds + (f" ({', '.join(report.scrubbed)} replaced)" if report.scrubbed else ""))
        )
    if any(name.lower() not in ("user", "assistant", "human", "gpt") for name in report.speakers):
        facts.append(("speakers", ", ".join(f"{name} {count:,}" for name, count in list(report.speakers.items())[:10])))
    if report.examples != report.used:
        facts.insert(2, ("pieces", f"{report.examples:,} of at most {report.max_length:,} tokens"))
    common.table(("", ""), facts)
    most = max((bar.rows for bar in report.histogram), default=1)
    screen.print("\ntokens         rows")
    for bar in report.histogram:
        drawn = "█" * max(1 if bar.rows else 0, round(BAR_WIDTH * bar.rows / most))
        screen.print(Text(f"{bar.low:>5}–{bar.high - 1:<6} {bar.rows:>6}  {drawn}"))
    for note in report.notes:
        screen.print(Text(f"note: {note}"))
    for row in report.rejected[:REJECTED_SHOWN]:
        screen.print(Text(f"rejected: {row['file']}, line {row['line']}: {row['reason']}"))
    if report.rejected_count > REJECTED_SHOWN:
        screen.print(Text(f"… and {report.rejected_count - REJECTED_SHOWN:,} more; --json lists them."))


def _print_preview(row: Encoded, found: Sequence[Piece]) -> None:
    from rich.text import Text

    screen = common.console()
    screen.print()
    place = f"{row.source.file}, line {row.source.line}"
    screen.print(Text(f"── {place}: {len(row.ids)} tokens, {int(row.mask.sum())} learned ──", style="dim"))
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    screen.print(_coloured(found) if coloured else Text(_marked(found)))


def _coloured(found: Sequence[Piece]) -> Text:
    from rich.text import Text

    text = Text()
    for part, learned in _runs(found):
        text.append(part, LEARNED_STYLE if learned else "dim")
    return text


def _marked(found: Sequence[Piece]) -> str:
    return "".join(f"⟦{part}⟧" if learned else part for part, learned in _runs(found))


def _runs(found: Sequence[Piece]) -> Iterator[tuple[str, bool]]:
    """The row's text in runs of supervised and unsupervised tokens."""
    for learned, parts in itertools.groupby(found, key=lambda piece: piece.learned):
        yield "".join(piece.text for piece in parts), learned


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "–"
