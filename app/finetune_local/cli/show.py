"""Output of the verbs: results to stdout, everything else to stderr; rich formatting on terminals only."""

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


def console(stderr: bool = False) -> Console:
    """A rich console; writes plain text if the stream is not a terminal, and honours NO_COLOR."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def stdin_text() -> TextIO:
    """Standard input, decoded as UTF-8 whatever the console's code page."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return sys.stdin


_CONTROL = dict.fromkeys(i for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t")


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
