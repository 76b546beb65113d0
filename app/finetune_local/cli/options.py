"""Options that several verbs share, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

PRECISIONS = ("fp32", "bf16", "8-bit", "4-bit")


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
        "--precision", type=click.Choice(PRECISIONS), default=None, help="How the base's weights are held."
    )(function)


def seed_option(function: F) -> F:
    """--seed, passed as `seed: int`."""
    return click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=42, show_default=True, help="Seed.")(
        function
    )
