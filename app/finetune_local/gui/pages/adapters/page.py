"""Adapters: trained and imported ones. Chat, evaluate, export, rename, annotate, remove, or extract a low-rank adapter."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters import manage
from finetune_local.adapters.extraction import job_extract
from finetune_local.adapters.extraction.job_extract import KIND as EXTRACT
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.pages.adapters import detail
from finetune_local.gui.pages.adapters import list as adapterlist
from finetune_local.gui.pages.adapters.state import AdaptersState
from finetune_local.gui.shell.lookups import Answer, Answers
from finetune_local.gui.widgets import leftovers, lists, parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.gui.widgets.lists import Place
from finetune_local.runtime import jobs
from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import as_message
from finetune_local.workspace import adapters
from finetune_local.workspace.adapters import Shelf

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

TITLE, ORDER = "nav.adapters", 60
SHOWS, SOLVES = (EXTRACT.key,), (AdapterError,)
UNDO = "adapters.undo"
GOES = {"adapters.evaluate": "evaluate", "adapters.export": "export"}


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    AdaptersPage(context).build()


class AdaptersPage:
    """The page's components and their handlers. It shows the list, or one adapter ("adapters_shown")."""

    def __init__(self, context: Context) -> None:
        self.context, self.t = context, context.t
        self.shelf = Shelf(context.home)
        self.companions = Answers(context.lookups, "brings")

    def build(self) -> None:
        """Create the components and connect their events."""
        import gradio as gr

        t, context = self.t, self.context
        self.head = parts.view(id="adapters-head")
        with gr.Row(elem_id="adapters-tools", elem_classes=["list-tools", "drop-here"]) as self.tools:
            self.search = gr.Textbox(
                label=t("lists.search"),
                placeholder=t("adapters.search_for"),
                elem_id="adapters-search",
                max_lines=1,
                scale=3,
            )
            self.from_folder = gr.Button(t("adapters.import_folder"), elem_id="adapters-import", scale=0, min_width=170)
            self.from_zip = gr.UploadButton(
                t("adapters.import_zip"), file_types=[".zip"], elem_id="adapters-zip", scale=0, min_width=170
            )
        self.adding = parts.view(id="adapters-adding")
        self.main = parts.view(id="adapters-main")
        self.trash = parts.view(id="adapters-trash")
        self.views = [self.head, self.tools, self.adding, self.main, self.trash]
        context.on_show("adapters", self._show, [*self.views, self.search])
        context.on_tick("adapters", self._tick, self.views)
        context.on(self.search.input, self._searched, self.search, self.views, latest=True)
        context.on(self.from_folder.click, self._begin_import, None, self.views)
        context.on(self.from_zip.upload, self._uploaded, self.from_zip, self.views)
        for view in (self.adding, self.main, self.trash):
            context.on(view.click, self._press, None, [*self.views, context.nav])
        context.on_notice(UNDO, self._undo, self.views)

    # ── drawing ────────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, window: Window) -> Place:
        return window.state(AdaptersState).list

    def _show(self, window: Window) -> dict[Any, Any]:
        window.state(AdaptersState).editing = ""
        drawn = self._draw(window, whole=True)
        search = self._place(window).search  # read last: the user may be typing in it
        return drawn | ({self.search: search} if window.lacks("adapters-search", search) else {})

    def _draw(self, window: Window, whole: bool = False) -> dict[Any, Any]:
        """The views that have changed, or all. If the open adapter no longer exists, the list is shown."""
        with window.drawing:
            return self._drawn(window, whole)

    def _drawn(self, window: Window, whole: bool) -> dict[Any, Any]:
        import gradio as gr

        t, rows = self.t, self.shelf.listing()
        shown = next((row for row in rows if row["name"] == window.shared.opened_adapter), None)
        editing = window.state(AdaptersState).editing
        if shown is not None:
            companions = Answer([])
            if not shown["problem"]:
                companions = self.companions.ask(
                    folder=shown["folder"], bytes=shown["bytes"]
                )  # its size changed: check again
            main = detail.drawn(self.context, shown, rows, editing, companions)
        else:
            names = {row["name"] for row in rows}
            place = self._place(window)
            place = replace(place, picked=tuple(name for name in place.picked if name in names))
            main = adapterlist.drawn(self.context, adapterlist.chosen(t, rows, place), len(rows), place)
        listed = shown is None
        drawn: dict[Any, Html] = {
            self.head: parts.header(t("adapters.title"), t("adapters.lead")) if listed else Html(""),
            self.adding: self._import_form() if listed and editing == "import" else Html(""),
            self.main: main,
            self.trash: join(
                [leftovers.damaged_jobs(self.context, EXTRACT), leftovers.trash_box(self.context, manage.KIND)]
            )
            if listed
            else Html(""),
        }
        updates = {**drawn, self.tools: gr.update(visible=listed)}
        now: dict[Any, Any] = {**drawn, self.tools: listed}
        changed = {view for view, value in now.items() if window.changed(f"adapters{view._id}", value)}
        return {view: update for view, update in updates.items() if whole or view in changed}

    def _import_form(self) -> Html:
        t = self.t
        browse = h(
            "button", t("common.browse"), type="button", class_="button small needs-window", data_pick="folder",
            data_into="adapters-path",
        )  # fmt: skip
        fields = [
            lists.field(t("adapters.path"), "place", hint=t("adapters.path_help"), box="adapters-path", autofocus=True),
            browse,
            lists.field(t("adapters.new_name"), "name", hint=t("adapters.name_help")),
        ]
        cancel = parts.button(t("common.cancel"), "adapters.edit_end", kind="small")
        form = lists.form("adapters.import", "", fields, t("adapters.import"), cancel)
        return parts.card(form, title=t("adapters.import_title"))

    def _tick(self, window: Window) -> dict[Any, Any]:
        return {} if window.state(AdaptersState).editing else self._draw(window)  # keep what the user is typing

    # ── handlers ──────────────────────────────────────────────────────────────────────────────────────────

    def _to(self, window: Window, place: Place) -> dict[Any, Any]:
        window.state(AdaptersState).list = place
        return self._draw(window)

    def _searched(self, window: Window, text: str) -> dict[Any, Any]:
        window.state(AdaptersState).list = replace(self._place(window), search=text, page=0)
        window.fields["adapters-search"] = text
        return self._draw(window)

    def _names_on_page(self, window: Window) -> list[str]:
        rows = adapterlist.chosen(self.t, self.shelf.listing(), self._place(window))
        return [str(row["name"]) for row in lists.on_page(rows, self._place(window))[0]]

    def _press(self, window: Window, event: Any) -> dict[Any, Any]:
        do, value, data = parts.pressed(event)
        if leftovers.remove_damaged_job(self.context, do, value):
            return self._draw(window)
        place, context, shared = self._place(window), self.context, window.shared
        state = window.state(AdaptersState)
        columns = adapterlist.columns(self.t)
        if (new := lists.moved(place, do, value, data, self._names_on_page(window), columns)) is not None:
            return self._to(window, new)
        match do:
            case "go":
                return {context.nav: context.go(window, value)}
            case "adapters.chat" | "adapters.chat_picked":
                shared.adapters = (value,) if do == "adapters.chat" else place.picked
                return {context.nav: context.go(window, "chat")}
            case "adapters.evaluate" | "adapters.export":
                shared.adapter = value
                return {context.nav: context.go(window, GOES[do])}
            case "adapters.evaluation":
                shared.evaluation = value
                return {context.nav: context.go(window, "evaluate")}
            case "adapters.run":
                shared.runs_view, shared.opened_run = "run", value
                return {context.nav: context.go(window, "runs")}
            case "adapters.open":
                shared.opened_adapter, state.editing = value, ""
            case "adapters.back":
                shared.opened_adapter, state.editing = "", ""
            case "adapters.edit":
                state.editing = "name" if value == "name" else "note"
            case "adapters.edit_end":
                state.editing = ""
            case "trash.back":
                leftovers.put_back(context, value)
            case "trash.empty":
                leftovers.empty_trash(context, manage.KIND)
            case _:
                return self._change(window, do, value, {key: text.strip() for key, text in data.items()})
        return self._draw(window)

    def _change(self, window: Window, do: str, value: str, data: dict[str, str]) -> dict[Any, Any]:
        """Handle an action that changes files."""
        home = self.context.home
        match do:
            case "adapters.import":
                return self._import(window, Path(data.get("place", "")), data.get("name") or None)
            case "adapters.rename":
                new = data.get("name", "")
                if new != value:
                    adapters.rename_adapter(value, new, home)
                    window.shared.rename(value, new)
                window.state(AdaptersState).editing, window.shared.opened_adapter = "", new
            case "adapters.note":
                manage.write_note(value, data.get("note", ""), home)
                window.state(AdaptersState).editing = ""
            case "adapters.remove":
                return self._remove(window, [value])
            case "adapters.remove_picked":
                return self._remove(window, list(self._place(window).picked))
            case "adapters.extract":
                self._extract(value, data)
            case "adapters.stop":
                jobs.find(home, value).ask_to_stop()
        return self._draw(window)

    def _begin_import(self, window: Window) -> dict[Any, Any]:
        window.state(AdaptersState).editing = "import"
        return self._draw(window)

    def _import(self, window: Window, source: Path, name: str | None) -> dict[Any, Any]:
        if source == Path():
            raise AdapterError(as_message(self.t("adapters.path_missing")))
        notes: list[str] = []
        entry = manage.bring_in(source, self.context.home, name, notes.append)
        window.state(AdaptersState).editing = ""
        return {**self._draw(window), self.context.notice: self._brought(entry.name, notes)}

    def _uploaded(self, window: Window, path: str | None) -> dict[Any, Any]:
        if not path:
            return {}
        upload, notes = Path(path), list[str]()
        try:
            name = manage.free_name(upload.stem, self.context.home)
            entry = manage.bring_in(upload, self.context.home, name, notes.append)
        finally:
            upload.unlink(missing_ok=True)
            with suppress(OSError):  # Gradio creates a folder per upload
                upload.parent.rmdir()
        return {**self._draw(window), self.context.notice: self._brought(entry.name, notes)}

    def _brought(self, name: str, notes: Sequence[str]) -> Html:
        text = " ".join([self.t("adapters.import_done_text"), *(sentence(self.t, note) for note in notes)])
        return parts.success_notice(self.t, self.t("adapters.import_done", name=name), text)

    def _remove(self, window: Window, names: list[str]) -> dict[Any, Any]:
        removed = adapters.remove_adapters(names, self.context.home)
        shared = window.shared
        shared.opened_adapter = ""
        shared.adapters = tuple(name for name in shared.adapters if name not in names)
        shared.adapter = None if shared.adapter in names else shared.adapter
        shown = self._to(window, replace(self._place(window), picked=()))
        return {**shown, self.context.notice: leftovers.removed_notice(self.context, removed, UNDO)}

    def _undo(self, window: Window, value: str) -> dict[Any, Any]:
        leftovers.put_back(self.context, value)
        return self._draw(window)

    def _extract(self, name: str, data: dict[str, str]) -> None:
        home = self.context.home
        rank, energy = job_extract.size(data.get("rank", ""), data.get("energy", ""))
        called = data.get("name") or manage.free_name(f"{name}-lora", home)
        manage.check_name(called, home)
        jobs.start_once(home, EXTRACT, {"adapter": name, "name": called, "rank": rank, "energy": energy})
