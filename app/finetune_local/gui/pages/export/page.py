"""Export: a model or an adapter for other programs, verified before it counts as finished."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters.library import Library
from finetune_local.export import job_export
from finetune_local.export.job_export import KIND as EXPORT
from finetune_local.export.pipeline import Offers
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.pages.export import form as exportform
from finetune_local.gui.pages.export import view as exportview
from finetune_local.gui.pages.export.state import ExportState
from finetune_local.gui.shell.lookups import Answer, Answers
from finetune_local.gui.widgets import jobview, leftovers, parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.gui.window.opening import open_folder
from finetune_local.models.install import installed
from finetune_local.runtime import jobs
from finetune_local.runtime.job import Job
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import as_message

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

TITLE, ORDER = "nav.export", 80
SHOWS = (EXPORT.key,)
LISTED = 30
"""How many exports are listed; older ones are removed with other old jobs."""


def completed(context: Context, _window: Window) -> bool:
    """Whether there is an export."""
    return any(found.state().result is not None for found in jobs.every(context.home, EXPORT))


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    ExportPage(context).build()


class ExportPage:
    """The page's components and their handlers."""

    def __init__(self, context: Context) -> None:
        self.context, self.t, self.f, self.home = context, context.t, context.f, context.home
        self.library = Library(context.home)
        self.offers = Answers(context.lookups, "offers")

    def build(self) -> None:
        """Create the components and connect their events."""
        context = self.context
        self.head = parts.view(id="export-head")
        self.work = parts.view(id="export-work")
        self.form = parts.view(id="export-form")
        self.history = parts.view(id="export-history")
        views = [self.head, self.work, self.form, self.history]
        context.on_show("export", self._show, views)
        context.on_tick("export", self._draw, views)
        for view in views:
            context.on(view.click, self._press, None, [*views, context.nav])

    # ── drawing ────────────────────────────────────────────────────────────────────────────────────────────

    def _show(self, window: Window) -> dict[Any, Any]:
        """Redraw when the page comes into view: models may have been added or removed."""
        self._ask_offers(window, self.library.listing(), again=True)
        return self._draw(window)

    def _draw(self, window: Window) -> dict[Any, Any]:
        """The views that have changed."""
        t = self.t
        adapters = self.library.listing()
        known = [found for found in jobs.every(self.home, EXPORT) if (found.folder / "job.json").is_file()]
        working = [found for found in known if jobview.active(found.state())]
        ended = [found for found in known if found not in working][:LISTED]
        nothing = not adapters and not installed(self.home.models)
        answer = self._ask_offers(window, adapters) if not nothing else None
        started = window.state(ExportState).shown
        own = [found for found in ended if found.name == started]
        others = [found for found in ended if found.name != started]
        # A newly started export scrolls to its top (app.js: data-top).
        top = h("span", tabindex="-1", data_top=started)
        drawn = {
            self.head: parts.header(t("export.title"), t("export.lead")),
            self.form: exportform.card(self.context, window, adapters, answer) if answer else self._empty(),
            self.work: join(
                [top, *map(self._working, working), *(exportview.ended(t, self.f, found) for found in own)]
            ),
            self.history: join(
                [exportview.history(t, self.f, others) if others else "", leftovers.damaged_jobs(self.context, EXPORT)]
            ),
        }
        return {view: html for view, html in drawn.items() if window.changed(f"export {view.elem_id}", html)}

    def _ask_offers(self, window: Window, adapters: exportform.Rows, again: bool = False) -> Answer:
        """What can be exported from the selection, from the lookup process."""
        adapter, model = exportform.source_of(self.context, window, adapters)
        return self.offers.ask(again=again, adapter=adapter, model=model)

    def _empty(self) -> Html:
        t = self.t
        return parts.empty(
            t("export.nothing"),
            t("export.nothing_text"),
            parts.button(t("export.go_train"), "go", "train", kind="primary"),
            parts.button(t("nav.adapters"), "go", "adapters"),
        )

    def _working(self, found: Job) -> Html:
        title = self.t("export.of", name=Path(found.arguments["out"]).name)
        return jobview.working(self.t, self.f, found, title, sentence(self.t, found.state().text))

    # ── handlers ──────────────────────────────────────────────────────────────────────────────────────────

    def _press(self, window: Window, event: Any) -> dict[Any, Any]:
        do, value, data = parts.pressed(event)
        if leftovers.remove_damaged_job(self.context, do, value):
            return self._draw(window)
        state = window.state(ExportState)
        match do:
            case "go":
                return {self.context.nav: self.context.go(window, value)}
            case "adapter":
                window.shared.adapter = value
            case "target":
                state.form = replace(state.form, target=value)
            case "quant":
                target = exportform.chosen_target(state.form).key
                state.form = replace(state.form, formats={**state.form.formats, target: value})
            case "set":
                if data.get("key") == "verify":
                    state.form = replace(state.form, verify=value == "true")
                else:
                    state.form = replace(state.form, folder=value.strip())
            case "start":
                self._start(window)
            case "open":
                found = jobs.find(self.home, value)
                open_folder(self.t, Path(found.arguments["out"]), job_export.places(self.home))
            case "job.stop":
                jobs.find(self.home, value).ask_to_stop()
            case "job.again":
                jobs.restart(jobs.find(self.home, value), self.home)
                state.shown = value
            case "job.forget":
                job_export.remove(self.home, value)
            case "job.close":
                state.shown = ""
        return self._draw(window)

    def _start(self, window: Window) -> None:
        adapters = self.library.listing()
        answer = self._ask_offers(window, adapters)
        if answer.value is None:
            raise SpecError(as_message(self.t("export.checking")))
        started = exportform.start(self.context, window, adapters, Offers.from_json(answer.value))
        window.state(ExportState).shown = started.name
