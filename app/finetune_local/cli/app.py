"""`app`: the desktop app in its own window, or in the browser."""

from __future__ import annotations

import importlib.util

import click

from finetune_local.cli.common import home_option, note
from finetune_local.system import paths
from finetune_local.system.errors import Unsupported
from finetune_local.system.messages import as_message

ORDER = 1

NEEDS = ("gradio", "uvicorn", "babel")
INSTALL = "pip install 'finetune-local[app]'"


def lacking() -> str | None:
    """A sentence if the app cannot start here, else None. Imports nothing heavy."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    return (
        f"the app's window is not installed ({', '.join(missing)} not found). Install it: {INSTALL}"
        if missing
        else None
    )


@click.command("app", short_help="Open the desktop app; also without a verb.")
@click.option("--browser", is_flag=True, help="Show it in the browser instead of a window of its own.")
@click.option("--no-open", is_flag=True, help="Open nothing: print a link that works once.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Port on 127.0.0.1. [a free one]")
@click.option(
    "--language",
    type=click.Choice(["auto", "en", "zh"]),
    default=None,
    help="Language of the window this time. [the preferred one]",
)
@click.option("--quit", "ending", is_flag=True, help="End the app that runs for this home.")
@home_option
def command(browser: bool, no_open: bool, port: int, language: str | None, ending: bool, home: str | None) -> None:
    """Open the app in a window: choose a model, import data, train, chat, compare, export.

    \b
    finetune-local app
    finetune-local app --browser

    Without a window system it opens in Chromium or your browser. Each home has one app: a second start raises the first one's window.
    Closing the window ends the app; training and other jobs continue.
    """
    if (problem := lacking()) is not None:
        raise Unsupported(as_message(problem))
    from finetune_local.gui.window.launch import LaunchRequest, end, launch

    place = paths.home(home)
    if ending:
        end(place, note)
        return
    show = "nothing" if no_open else "browser" if browser else "window"
    launch(place, LaunchRequest(show, port, language), note)  # type: ignore[arg-type]
