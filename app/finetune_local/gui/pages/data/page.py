"""Data: the files, their rows, the tokens that are learned, and how the files are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.pages.data import forms, looks
from finetune_local.gui.pages.data import rows as datarows
from finetune_local.gui.pages.data import view as dataview
from finetune_local.gui.pages.data.state import DataState
from finetune_local.gui.shell.pages import chosen_model, has_trained
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.form import objective_of, with_objective
from finetune_local.gui.widgets.html import Html, h
from finetune_local.spec.objectives import objective_named
from finetune_local.spec.run import DataSettings
from finetune_local.system.errors import DataError, FinetuneError

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window
    from finetune_local.training.run_folder.forecast import DataFacts

TITLE, ORDER = "nav.data", 20
SOLVES = (DataError,)
PATIENT_SECONDS = 1.2
"""Seconds that a press waits for its result, so that small files do not flicker."""


def completed(context: Context, window: Window) -> bool:
    """Whether data is selected, or a run was trained."""
    return bool(window.shared.data.files) or has_trained(context.home)


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    Page(context).build()


class Page:
    """The page's components and their handlers; each window has its own Look."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._looks: WeakKeyDictionary[Window, looks.Look] = WeakKeyDictionary()

    def build(self) -> None:
        """Create the components and connect their events."""
        import gradio as gr

        context, t = self.context, self.context.t
        self.head = parts.view(id="data-head")
        drop = h("div", h("strong", t("data.drop")), h("p", t("data.drop_formats"), class_="soft"))
        with gr.Column(elem_id="data-drop", elem_classes=["drop-here"]):
            parts.view(drop)
            with gr.Row(elem_id="data-add-row"):
                self.upload = gr.UploadButton(t("data.choose"), file_count="multiple", elem_id="data-upload", size="md")
                self.add = parts.view(id="data-add")
        self.files = parts.view(id="data-files")
        with gr.Row(elem_id="data-body"):
            with gr.Column(elem_id="data-main"):
                self.state = parts.view(id="data-state")  # a separate view, because it changes every second
                self.main = parts.view(id="data-found")
            with gr.Column(elem_id="data-side"):
                self.side = parts.view(id="data-how")
        views = [self.head, self.add, self.files, self.state, self.main, self.side]
        context.on_show("data", self.show, views)
        context.on_tick("data", self.tick, views)
        context.on(self.upload.upload, self.uploaded, self.upload, [*views, self.upload])
        for view in views:
            context.on(view.click, self.press, None, [*views, context.nav])

    # ── drawing ────────────────────────────────────────────────────────────────────────────────────────────

    def show(self, window: Window) -> dict[Any, Any]:
        """Redraw when the page comes into view: files may have changed on disk."""
        self._ask(window)
        return self._draw(window)

    def tick(self, window: Window) -> dict[Any, Any]:
        """Redraw each second: more of a large file may be known."""
        if window.shown.get("data_version") == self._look(window).version:
            return {}
        return self._draw(window)

    def _draw(self, window: Window) -> dict[Any, Any]:
        """The views that have changed."""
        t, f = self.context.t, self.context.f
        look, settings = self._look(window), window.shared.data
        window.shown["data_version"] = look.version
        if look.complete and look.found and (facts := self._facts(window, look.found)) is not None:
            window.shared.data_facts = facts
        if look.found and settings.files:
            window.shared.data_kinds = tuple(look.found["kinds"])
        found = look.found if settings.files else None
        drawn = {
            self.head: self._header(look, settings),
            self.add: self._adding(len(forms.files_of(settings))),
            self.files: dataview.files_card(t, f, settings, found) if forms.files_of(settings) else "",
            self.state: self._state(look) if settings.files else "",
            self.main: self._found(window, look, settings),
            self.side: self._how(settings, found) if settings.files else "",
        }
        return {view: html for view, html in drawn.items() if window.changed(f"data {view.elem_id}", html)}

    def _facts(self, window: Window, found: Mapping[str, Any]) -> DataFacts | None:
        return forms.facts(found, objective_named(objective_of(window.shared.form)))

    def _header(self, look: looks.Look, settings: DataSettings) -> Html:
        t = self.context.t
        ready = bool(settings.files) and not (look.complete and look.found and not forms.usable(look.found))
        button = parts.button(t("data.train"), "data.train", kind="primary", disabled=not ready)
        return parts.header(t("data.title"), t("data.lead"), button if forms.files_of(settings) else None)

    def _adding(self, known: int) -> Html:
        """The example button and the path field, which is cleared after a file was added."""
        t = self.context.t
        browse = h(
            "button",
            t("common.browse"),
            type="button",
            class_="button needs-window",
            data_pick="file",
            data_into="data-path",
        )
        path = h(
            "form",
            h("label", t("data.path"), for_="data-path-field"),
            h(
                "span",
                h(
                    "input",
                    id="data-path-field",
                    name_="where",  # Gradio would treat a field called "path" as a file
                    type="text",
                    autocomplete="off",
                    spellcheck="false",
                    placeholder=t("data.path_hint"),
                    data_do="data.path",
                    data_fresh=known,
                ),
                id="data-path",
                class_="grow",
            ),
            h("button", t("data.add"), type="submit", class_="button"),
            browse,
            data_do="data.path",
            class_="row",
        )
        example = parts.button(t("data.example"), "data.example", title=t("data.example_title"))
        return h("div", example, path, class_="row")

    def _found(self, window: Window, look: looks.Look, settings: DataSettings) -> Html | str:
        t, f = self.context.t, self.context.f
        if not settings.files:
            if forms.files_of(settings):
                return h("p", t("data.no_training_file"), class_="hint warn")
            return dataview.examples_card(t)
        found, rows = look.found, look.rows
        shown: list[Any] = []
        readable = found["readable"] if found and found["complete"] else None
        row = window.state(DataState).row
        objective = objective_named(objective_of(window.shared.form))
        if found is not None:
            shown += [
                dataview.figures(t, f, found),
                forms.columns_card(t, f, settings, found),
                forms.speakers_card(t, f, settings, found),
                dataview.notes(t, f, found, chosen_model(self.context, window), settings.assistant, objective),
            ]
        if rows is not None and rows["rows"]:
            shown += [
                datarows.rows_card(t, f, rows, readable, row),
                datarows.mask_card(t, f, rows, row, readable),
            ]
        if found is not None:
            shown += [dataview.lengths_card(t, f, found), dataview.rejected_card(t, f, found)]
        return h("div", shown, class_="stack")

    def _how(self, settings: DataSettings, found: Mapping[str, Any] | None) -> Html:
        t, f = self.context.t, self.context.f
        cards = [forms.how_card(t, f, settings, found)]
        if found is not None:
            cards.append(forms.personal_card(t, f, settings, found))
        return h("div", cards, class_="stack")

    def _state(self, look: looks.Look) -> Html | str:
        """The progress of reading, or its error."""
        t, f, found = self.context.t, self.context.f, look.found
        if look.problem is not None:
            if not isinstance(look.problem, FinetuneError):
                raise look.problem  # a bug: the notice shows it with its traceback
            again = parts.button(t("data.refresh"), "data.retry", kind="small")
            return h("div", h("p", sentence(t, look.problem)), again, class_="hint bad")
        if not look.working:
            return ""
        partly = found is not None and not found["complete"]
        text = t("data.reading_so_far", n=f.number(found["report"]["rows"])) if found and partly else t("data.reading")
        return parts.card(parts.progress(t, f, text, look.share if partly else None))

    # ── handlers ───────────────────────────────────────────────────────────────────────────────────────────

    def press(self, window: Window, event: Any) -> dict[Any, Any]:
        """Handle a button, a selection or a form of any view."""
        do, value, data = parts.pressed(event)
        settings, state = window.shared.data, window.state(DataState)
        match do:
            case "data.train":
                return {self.context.nav: self.context.go(window, "train")}
            case "data.model":
                return {self.context.nav: self.context.go(window, "model")}
            case "data.page":
                state.first = state.row = int(value)
            case "data.row":
                state.row = max(0, int(value))
                if not state.first <= state.row < state.first + datarows.PAGE:
                    state.first = state.row - state.row % datarows.PAGE
            case "data.objective":
                window.shared.form = with_objective(window.shared.form, value)
            case "data.retry":
                self._looks.pop(window, None)
            case _:
                found = self._look(window).found or {}
                forms.keep(window, forms.changed(self.context, settings, found, do, value, data))
        return self._answered(window)

    def uploaded(self, window: Window, names: Sequence[str] | None) -> dict[Any, Any]:
        """Handle dropped or selected files."""
        settings = forms.uploaded(self.context, window.shared.data, names or ())
        forms.keep(window, settings)
        return {**self._answered(window), self.upload: None}

    # ── inspection ─────────────────────────────────────────────────────────────────────────────────────────

    def _look(self, window: Window) -> looks.Look:
        if window not in self._looks:
            self._looks[window] = looks.Look(self.context.lookups)
        return self._looks[window]

    def _ask(self, window: Window) -> None:
        settings = window.shared.data
        if settings.files:
            state = window.state(DataState)
            model = chosen_model(self.context, window)
            models = self.context.home.models
            objective = objective_of(window.shared.form)
            question = looks.question(settings, model, models, state.first, datarows.PAGE, state.row, objective)
            self._look(window).ask(question)

    def _answered(self, window: Window) -> dict[Any, Any]:
        self._ask(window)
        self._look(window).wait(PATIENT_SECONDS)
        return self._draw(window)
