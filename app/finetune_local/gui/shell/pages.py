"""The pages of the window: one folder each in pages/, found by itself, in the order of a first journey.

A page is a module `pages/<key>/page.py` with
    TITLE: str                                  key of its name in the rail
    ORDER: int                                  its place there
    build(context) -> None                      makes its components and wires them with context.on, on_show and on_tick
and, where it has them,
    SHOWS: tuple[str, ...]                      kinds of work that it shows: kinds of jobs, or RUN
    SOLVES: tuple[type[FinetuneError], ...]     errors that the user can solve there
    completed(context, window) -> bool          whether its step of a first journey is done; pages that have it are those steps
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.shell.context import Context
from finetune_local.gui.shell.windows import Window
from finetune_local.gui.widgets.html import Html
from finetune_local.gui.widgets.parts import button
from finetune_local.models.install import installed
from finetune_local.runtime.kinds import JobKind
from finetune_local.spec.run import DEFAULT_MODEL, DataSettings
from finetune_local.system.errors import FinetuneError
from finetune_local.system.fields import parse
from finetune_local.training import job_run
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.forecast import facts_of_prepared
from finetune_local.training.run_folder.settings import settings_of

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window
    from finetune_local.system.paths import Home
    from finetune_local.training.run_folder.runs import Run


RUN = job_run.KIND.key
"""The kind of work that a run is."""


@dataclass(frozen=True)
class Page:
    """What a page's module declares."""

    key: str
    title: str
    order: int
    build: Callable[[Context], None]
    shows: tuple[str, ...]
    solves: tuple[type[FinetuneError], ...]
    completed: Callable[[Context, Window], bool] | None


@cache
def pages() -> Mapping[str, Page]:
    """Every page by its key, which is its folder's name, in order."""
    package = importlib.import_module("finetune_local.gui.pages")
    found = [_page(package.__name__, folder.name) for folder in pkgutil.iter_modules(package.__path__)]
    return {page.key: page for page in sorted(found, key=lambda page: page.order)}


def _page(package: str, key: str) -> Page:
    module = importlib.import_module(f"{package}.{key}.page")
    shows, solves = getattr(module, "SHOWS", ()), getattr(module, "SOLVES", ())
    return Page(key, module.TITLE, module.ORDER, module.build, shows, solves, getattr(module, "completed", None))


def page_showing(kind: str) -> str:
    """The page that shows a kind of work; of one that no page shows, the first page."""
    return next((page.key for page in pages().values() if kind in page.shows), next(iter(pages())))


def solution(t: Strings, error: FinetuneError) -> Html | None:
    """A button to the page where the user can solve an error; None if there is no such page. See Context.solution."""
    page = next((page for page in pages().values() if type(error) in page.solves), None)
    return button(t("errors.go_to", page=t(page.title)), "go", page.key, kind="small") if page else None


def go_to_work(context: Context, window: Window, kind: JobKind, name: str) -> Any:
    """An update for `context.nav` that shows a run or a job on its page."""
    if kind.key == RUN:
        window.shared.run = name
    return context.go(window, page_showing(kind.key))


def shows_work(window: Window, kind: JobKind, name: str) -> bool:
    """Whether the page of a run or a job is in view; for a run, whether it also shows this run."""
    return window.shared.page == page_showing(kind.key) and (kind.key != RUN or window.shared.run == name)


def chosen_model(context: Context, window: Window) -> str:
    """The base model that the window trains: the chosen one, else the default, else the first that is installed."""
    if window.shared.model:
        return window.shared.model
    known = installed(context.home.models)
    return DEFAULT_MODEL if DEFAULT_MODEL in known or not known else known[0]


def has_trained(home: Home) -> bool:
    """Whether any run has made an adapter."""
    return any(run.adapter.exists() for run in runs.every(home))


def set_up_like(window: Window, run: Run, changed: Mapping[str, Any] | None = None) -> None:
    """Set up a run with the settings of another, some of them changed. Raises SpecError."""
    found, facts = settings_of(run), facts_of_prepared(run.data)
    shared = window.shared
    shared.reset("run", "run_name")
    shared.setting_up, shared.made_from = True, run.name
    shared.model, shared.data_facts = found.model, facts
    shared.data = parse(DataSettings, found.data, f"run '{run.name}'")
    shared.method, shared.goal = found.method, found.goal
    shared.form = {**found.rest, **(changed or {})}
