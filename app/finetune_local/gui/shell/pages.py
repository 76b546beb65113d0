"""The registry of pages, navigation between them, and the base model and run that several of them set up.

A page is a folder in gui/pages/ with a module page.py, which defines
    TITLE: str                                  key of its title in the rail
    ORDER: int                                  its position there
    build(context) -> None                      adds its components and connects them with context.on, on_show and on_tick
and optionally
    SHOWS: tuple[str, ...]                      the kinds of work that it shows: kinds of jobs, or RUN
    SOLVES: tuple[type[FinetuneError], ...]     the errors that the user can solve there
    completed(context, window) -> bool          whether its step of a first run is completed; pages with this function are the steps
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
"""The kind of a run, among the kinds of work."""


@dataclass(frozen=True)
class Page:
    """The definitions of a page's module."""

    key: str
    title: str
    order: int
    build: Callable[[Context], None]
    shows: tuple[str, ...]
    solves: tuple[type[FinetuneError], ...]
    completed: Callable[[Context, Window], bool] | None


@cache
def pages() -> Mapping[str, Page]:
    """All pages by key, which is the name of their folder, in the order of the rail."""
    package = importlib.import_module("finetune_local.gui.pages")
    found = [_page(package.__name__, folder.name) for folder in pkgutil.iter_modules(package.__path__)]
    return {page.key: page for page in sorted(found, key=lambda page: page.order)}


def _page(package: str, key: str) -> Page:
    module = importlib.import_module(f"{package}.{key}.page")
    shows, solves = getattr(module, "SHOWS", ()), getattr(module, "SOLVES", ())
    return Page(key, module.TITLE, module.ORDER, module.build, shows, solves, getattr(module, "completed", None))


def page_showing(kind: str) -> str:
    """The key of the page that shows a kind of work; the first page if none does."""
    return next((page.key for page in pages().values() if kind in page.shows), next(iter(pages())))


def solution(t: Strings, error: FinetuneError) -> Html | None:
    """A button to the page where the user can solve an error; None if there is no such page. See Context.solution."""
    # The nearest class counts: a page that solves ModelError also solves ModelNotFound.
    places = {kind: page for page in pages().values() for kind in page.solves}
    page = next((places[kind] for kind in type(error).__mro__ if kind in places), None)
    return button(t("errors.go_to", page=t(page.title)), "go", page.key, kind="small") if page else None


def go_to_work(context: Context, window: Window, kind: JobKind, name: str) -> Any:
    """An update for `context.nav` that opens the page of a run or a job."""
    if kind.key == RUN:
        window.shared.run = name
    return context.go(window, page_showing(kind.key))


def shows_work(window: Window, kind: JobKind, name: str) -> bool:
    """Whether the page of a run or a job is in view; for a run, whether it also shows this run."""
    return window.shared.page == page_showing(kind.key) and (kind.key != RUN or window.shared.run == name)


def chosen_model(context: Context, window: Window) -> str:
    """The base model to train: the chosen one, else the default if it is installed or nothing is, else the first installed one."""
    if window.shared.model:
        return window.shared.model
    known = installed(context.home.models)
    return DEFAULT_MODEL if DEFAULT_MODEL in known or not known else known[0]


def has_trained(home: Home) -> bool:
    """Whether any run has produced an adapter."""
    return any(run.adapter.exists() for run in runs.every(home))


def set_up_like(window: Window, run: Run, changed: Mapping[str, Any] | None = None) -> None:
    """Set up a run with the settings of another one, overridden by `changed`. Raises SpecError."""
    found, facts = settings_of(run), facts_of_prepared(run.data)
    shared = window.shared
    shared.reset("run", "run_name")
    shared.setting_up, shared.made_from = True, run.name
    shared.model, shared.data_facts, shared.data_kinds = found.model, facts, ()
    shared.data = parse(DataSettings, found.data, f"run '{run.name}'")
    shared.method, shared.goal = found.method, found.goal
    shared.form = {**found.rest, **(changed or {})}
