"""Options and output that several verbs share.

Results go to stdout, everything else to stderr; rich formatting is for terminals only.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import click

from finetune_local.system.messages import carrying

if TYPE_CHECKING:
    from rich.console import Console


from collections.abc import Callable
from typing import TypeVar

_CONTROL = dict.fromkeys(i for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t")
PRECISIONS = ("fp32", "bf16", "8-bit", "4-bit")


def console(stderr: bool = False) -> Console:
    """A rich console; writes plain text if the stream is not a terminal, and honours NO_COLOR."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def stdin_text() -> TextIO:
    """Standard input as UTF-8 text, also if the console has another code page."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return sys.stdin


def say(text: str) -> None:
    """Write a piece of a model's answer to stdout without a line end. Control characters are dropped, since they could steer the terminal."""
    click.echo(text.translate(_CONTROL), nl=False)


def emit(value: Any) -> None:
    """Write one JSON value as one line to stdout."""
    click.echo(json.dumps(carrying(value) if isinstance(value, dict) else value, ensure_ascii=False))


def note(text: str) -> None:
    """Write a sentence to stderr."""
    click.echo(text, err=True)


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None) -> None:
    """Write a table to stdout. Cells are plain text, never markup."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title, header_style="bold", box=None, pad_edge=False)
    for heading in headings:
        drawn.add_column(heading, overflow="fold")
    for row in rows:
        drawn.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    console().print(drawn)


def megabytes(count: float) -> str:
    """Bytes in readable units: 1.5 GB, 270 MB."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    """Seconds in readable units: 45 s, 3 min 05 s, 2 h 10 min."""
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


F = TypeVar("F", bound=Callable[..., Any])


def home_option(function: F) -> F:
    """--home, passed as `home: str | None`."""
    return click.option(
        "--home", metavar="DIR", default=None, help="Where runs, models and adapters live ($FINETUNE_LOCAL_HOME)."
    )(function)


def json_option(function: F) -> F:
    """--json, passed as `as_json: bool`; `runs --json list` means the same as `runs list --json`."""

    def inherited(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
        return value or (context.parent is not None and bool(context.parent.params.get("as_json")))

    return click.option(
        "--json", "as_json", is_flag=True, callback=inherited, help="Print JSON; the last line is the result."
    )(function)


def model_option(function: F) -> F:
    """--model, passed as `model: str | None`; None means the adapter's base, else the small default."""
    return click.option(
        "--model", metavar="NAME", default=None, help="Base model: a name from `models`, or a local folder."
    )(function)


def backend_option(function: F) -> F:
    """--backend, passed as `backend: str`."""
    return click.option("--backend", metavar="NAME", default="auto", show_default=True, help="torch, mlx or auto.")(
        function
    )


def precision_option(function: F) -> F:
    """--precision, passed as `precision: str | None`; None means the device's default."""
    return click.option(
        "--precision", type=click.Choice(PRECISIONS), default=None, help="How the base's weights are stored."
    )(function)


def seed_option(function: F) -> F:
    """--seed, passed as `seed: int`."""
    return click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=42, show_default=True, help="Seed.")(
        function
    )
