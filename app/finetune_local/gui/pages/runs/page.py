"""Runs: the history of training. Inspect or compare runs, train again with changes, resume, rename, remove."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finetune_local.gui.pages.runs import compare, detail
from finetune_local.gui.pages.runs.state import RunsState
from finetune_local.gui.shell.pages import set_up_like
from finetune_local.gui.widgets import leftovers, lists, parts, runlist
from finetune_local.gui.widgets.html import Html
from finetune_local.gui.widgets.lists import Place
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import as_message
from finetune_local.training.run_folder import follow, runs
from finetune_local.training.run_folder.facts import Listing, RunFacts
from finetune_local.training.run_folder.runs import Run
from finetune_local.workspace import adapters

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

TITLE, ORDER = "nav.runs", 70
UNDO = "runs.undo"
PATIENCE = 1.5
"""Seconds after which the list is read from disk again."""


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    RunsPage(context).build()


class RunsPage:
    """The page's components and their handlers. It shows the list, one run, or a comparison ("runs_view")."""

    def __init__(self, context: Context) -> None:
        self.context, self.t = context, context.t
        self.listing = Listing(context.home)

    def build(self) -> None:
        """Create the components and connect their events."""
        import gradio as gr

        t, context = self.t, self.context
        self.head = parts.view(id="runs-head")
        with gr.Row(elem_id="runs-tools", elem_classes=["list-tools"]) as self.tools:
            self.search = gr.Textbox(
                label=t("lists.search"), placeholder=t("runs.search_for"), elem_id="runs-search", max_lines=1, scale=3
            )
            self.status = gr.Dropdown([(t("runs.any_status"), "")], value="", label=t("runs.status"), elem_id="runs-status", filterable=False)  # fmt: skip
            self.method = gr.Dropdown([(t("runs.any_method"), "")], value="", label=t("runs.method"), elem_id="runs-method", filterable=False)  # fmt: skip
        self.main = parts.view(id="runs-main")
        self.trash = parts.view(id="runs-trash")
        self.views = [self.head, self.tools, self.main, self.trash]
        context.on_show("runs", self._show, [*self.views, self.search, self.status, self.method])
        context.on_tick("runs", self._tick, self.views)
        context.on(self.search.input, self._searched, self.search, self.views, latest=True)
        context.on(self.status.input, self._filter_status, self.status, self.views)
        context.on(self.method.input, self._filter_method, self.method, self.views)
        for view in (self.main, self.trash):
            context.on(view.click, self._press, None, [*self.views, context.nav])
        context.on_notice(UNDO, self._undo, self.views)

    # ── drawing ────────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, window: Window) -> Place:
        return window.state(RunsState).list

    def _show(self, window: Window) -> dict[Any, Any]:
        import gradio as gr

        state = window.state(RunsState)
        state.editing = False
        t, rows = self.t, self.listing.all()
        methods = sorted({row.method for row in rows if row.method})
        filters = {str(status): t(f"runs.status_{status}") for status in runlist.STATUSES}
        filters[runlist.DAMAGED] = t("runs.damaged")
        if state.status not in filters:
            state.status = ""
        status, method = state.status, state.method
        offered = [
            key for key in filters if key == status or runlist.chosen(t, rows, Place("run", down=False), key, "")
        ]
        methods += [method] if method and method not in methods else []
        drawn = self._draw(window, whole=True)
        search = self._place(window).search  # read last: the user may be typing in it
        return {
            **drawn,
            **({self.search: search} if window.lacks("runs-search", search) else {}),
            self.status: gr.update(
                choices=[(t("runs.any_status"), ""), *((filters[key], key) for key in offered)],
                value=status,
            ),
            self.method: gr.update(
                choices=[(t("runs.any_method"), ""), *((runlist.method_name(t, key), key) for key in methods)],
                value=method,
            ),
        }

    def _draw(self, window: Window, patience: float = 0.0, whole: bool = False) -> dict[Any, Any]:
        """The views that have changed, or all. If the open run no longer exists, the list is shown."""
        with window.drawing:
            return self._drawn(window, patience, whole)

    def _drawn(self, window: Window, patience: float, whole: bool) -> dict[Any, Any]:
        import gradio as gr

        t, rows, state = self.t, self.listing.all(patience), window.state(RunsState)
        found = self._open_runs(window, rows)
        listed = not found
        if window.shared.runs_view == "compare" and found:
            main = compare.drawn(self.context, found, state.look)
        elif found:
            main = detail.drawn(self.context, *found[0], editing=state.editing)
        else:
            names = {row.run for row in rows}
            place = self._place(window)
            place = replace(place, picked=tuple(name for name in place.picked if name in names))
            chosen = runlist.chosen(t, rows, place, state.status, state.method)
            main = runlist.drawn(self.context, chosen, len(rows), place)
        drawn: dict[Any, Html] = {
            self.head: parts.header(t("runs.title"), t("runs.lead")) if listed else Html(""),
            self.main: main,
            self.trash: leftovers.trash_box(self.context, runs.KIND) if listed else Html(""),
        }
        changed: dict[Any, Any] = {
            view: html for view, html in drawn.items() if window.changed(f"runs{view._id}", html)
        }
        tools = listed and bool(rows)
        if window.changed("runs-tools", tools):
            changed[self.tools] = gr.update(visible=tools)
        return changed

    def _open_runs(self, window: Window, rows: Sequence[RunFacts]) -> list[tuple[Run, RunFacts]]:
        """The runs that are shown instead of the list, without those that no longer exist."""
        view = window.shared.runs_view
        names: Sequence[Any] = (
            [window.shared.opened_run] if view == "run" else self._place(window).picked if view == "compare" else []
        )
        by_name = {row.run: row for row in rows}
        found = [(Run(self.context.home.runs / name), by_name[name]) for name in names if name in by_name]
        if view == "compare":
            found = [pair for pair in found if not pair[1].damaged][: runlist.MOST_COMPARED]
        return found

    def _tick(self, window: Window) -> dict[Any, Any]:
        return {} if window.state(RunsState).editing else self._draw(window, PATIENCE)  # keep what the user is typing

    # ── handlers ──────────────────────────────────────────────────────────────────────────────────────────

    def _to(self, window: Window, place: Place) -> dict[Any, Any]:
        window.state(RunsState).list = place
        return self._draw(window)

    def _searched(self, window: Window, text: str) -> dict[Any, Any]:
        window.state(RunsState).list = replace(self._place(window), search=text, page=0)
        window.fields["runs-search"] = text
        return self._draw(window)

    def _filter_status(self, window: Window, value: str) -> dict[Any, Any]:
        window.state(RunsState).status = value or ""
        return self._to(window, replace(self._place(window), page=0))

    def _filter_method(self, window: Window, value: str) -> dict[Any, Any]:
        window.state(RunsState).method = value or ""
        return self._to(window, replace(self._place(window), page=0))

    def _press(self, window: Window, event: Any) -> dict[Any, Any]:
        do, value, data = parts.pressed(event)
        place = self._place(window)
        if (
            new := lists.moved(place, do, value, data, self._names_on_page(window), runlist.columns(self.t))
        ) is not None:
            return self._to(window, new)
        context, shared, state = self.context, window.shared, window.state(RunsState)
        match do:
            case "go":
                return {context.nav: context.go(window, value)}
            case "runs.open":
                shared.runs_view, shared.opened_run = "run", value
            case "runs.compare":
                shared.runs_view = "compare"
            case "runs.back":
                shared.runs_view, state.editing = "list", False
            case "runs.edit":
                state.editing = True
            case "runs.edit_end":
                state.editing = False
            case "runs.shown" | "runs.axis" | "runs.smoothing":
                state.look = compare.changed(state.look, do.partition(".")[2], value)
            case "runs.rename":
                return self._rename(window, value, data.get("name", "").strip())
            case "runs.remove" | "runs.remove_picked":
                return self._remove(window, [value] if do == "runs.remove" else list(place.picked))
            case "trash.back":
                leftovers.put_back(context, value)
            case "trash.empty":
                leftovers.empty_trash(context, runs.KIND)
            case _:
                return self._go(window, do, runs.find(context.home, value))
        return self._draw(window)

    def _go(self, window: Window, do: str, run: Run) -> dict[Any, Any]:
        """Open another page with a run selected."""
        context = self.context
        if do == "runs.chat":
            window.shared.adapters = (run.name,)
            return {context.nav: context.go(window, "chat")}
        if do == "runs.again":
            set_up_like(window, run)
            return {context.nav: context.go(window, "train")}
        if do == "runs.resume":
            follow.start(run, context.home)
        window.shared.run, window.shared.setting_up = run.name, False
        return {context.nav: context.go(window, "train")}

    def _names_on_page(self, window: Window) -> list[str]:
        state = window.state(RunsState)
        rows = runlist.chosen(self.t, self.listing.all(), state.list, state.status, state.method)
        return [row.run for row in lists.on_page(rows, state.list)[0]]

    def _rename(self, window: Window, old: str, new: str) -> dict[Any, Any]:
        if new != old:
            adapters.rename_run(runs.find(self.context.home, old), new, self.context.home)
            window.shared.rename(old, new)
        window.state(RunsState).editing, window.shared.opened_run = False, new
        return self._draw(window)

    def _remove(self, window: Window, names: list[str]) -> dict[Any, Any]:
        if not names:
            raise SpecError(as_message(self.t("runs.none_selected")))
        removed = adapters.remove_runs(names, self.context.home)
        window.shared.runs_view = "list"
        window.shared.run = "" if window.shared.run in names else window.shared.run
        shown = self._to(window, replace(self._place(window), picked=()))
        return {**shown, self.context.notice: leftovers.removed_notice(self.context, removed, UNDO)}

    def _undo(self, window: Window, value: str) -> dict[Any, Any]:
        leftovers.put_back(self.context, value)
        return self._draw(window)
