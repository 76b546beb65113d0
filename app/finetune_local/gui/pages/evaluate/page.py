"""Evaluate: did the fine-tune help? Scores on held-out rows, row by row, and blind votes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters.library import Library
from finetune_local.data.readers import kept
from finetune_local.evaluation import store
from finetune_local.evaluation.job_evaluate import KIND
from finetune_local.evaluation.store import WHICH, Saved
from finetune_local.evaluation.votes import SIDES, Ballot
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.pages.evaluate import form as evaluateform
from finetune_local.gui.pages.evaluate import view as evaluateview
from finetune_local.gui.pages.evaluate.state import EvaluateState, VoteLook
from finetune_local.gui.widgets import jobview, leftovers, parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.runtime import jobs
from finetune_local.runtime.job import Job
from finetune_local.runtime.status import Status
from finetune_local.system import trash
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import as_message

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

TITLE, ORDER = "nav.evaluate", 50
SHOWS = (KIND.key,)
UNDO = "evaluate.undo"
KEPT = 4
"""How many evaluations are cached in memory: windows may show different ones."""


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    EvaluatePage(context).build()


class EvaluatePage:
    """The page's components and their handlers."""

    def __init__(self, context: Context) -> None:
        self.context, self.t, self.f, self.home = context, context.t, context.f, context.home
        self.library = Library(context.home)
        self._saved: dict[str, Saved] = {}
        self._ballots: dict[tuple[str, str], Ballot] = {}

    def build(self) -> None:
        """Create the components and connect their events."""
        import gradio as gr

        context = self.context
        self.head = parts.view(id="evaluate-head")
        self.setup = parts.view(id="evaluate-setup")
        with gr.Row(elem_id="evaluate-upload-row", visible=False) as self.upload_row:
            self.upload = gr.UploadButton(self.t("evaluate.upload"), elem_id="evaluate-upload", size="sm", scale=0)
        self.work = parts.view(id="evaluate-work")
        self.main = parts.view(id="evaluate-main")
        self.earlier = parts.view(id="evaluate-earlier")
        views = [self.head, self.setup, self.work, self.main, self.earlier]
        outputs = [*views, self.upload_row]
        context.on_show("evaluate", self._show, outputs)
        context.on_tick("evaluate", self._tick, outputs)
        context.on(self.upload.upload, self._uploaded, self.upload, [*outputs, self.upload])
        for view in views:
            context.on(view.click, self._press, None, [*outputs, context.nav])
        context.on_notice(UNDO, self._undo, outputs)

    # ── drawing ────────────────────────────────────────────────────────────────────────────────────────────

    def _show(self, window: Window) -> dict[Any, Any]:
        return self._draw(window)

    def _tick(self, window: Window) -> dict[Any, Any]:
        self._open_finished(window)
        return self._draw(window)

    def _draw(self, window: Window) -> dict[Any, Any]:
        """The views that have changed."""
        import gradio as gr

        t = self.t
        adapters = self.library.listing()
        voted = self._voted(window)
        drawn: dict[Any, Any]
        if voted is not None:
            main = evaluateview.vote(t, self.f, *voted, revealed=window.state(EvaluateState).vote.revealed)
            drawn = {self.head: "", self.setup: "", self.work: "", self.main: main, self.earlier: ""}
            upload = False
        else:
            shown = self._shown(window)
            everything = store.every(self.home)
            nothing = not adapters and not everything
            upload = not nothing and 'id="evaluate-file"' in (form := self._form(window, adapters))
            drawn = {
                self.head: parts.header(t("evaluate.title"), t("evaluate.lead")),
                self.setup: self._empty() if nothing else form,
                self.work: join(self._work(window)),
                self.main: self._result(window, shown) if shown else "",
                self.earlier: h(
                    "div",
                    evaluateview.earlier(t, self.f, everything, shown.name if shown else "") if everything else None,
                    leftovers.damaged_box(t, store.damaged(self.home), "earlier.remove"),
                    leftovers.damaged_jobs(self.context, KIND),
                    leftovers.trash_box(self.context, store.KIND),
                ),
            }
        changed = {view: html for view, html in drawn.items() if window.changed(f"evaluate {view.elem_id}", html)}
        if window.changed("evaluate upload", upload):
            changed[self.upload_row] = gr.update(visible=upload)
        return changed

    def _form(self, window: Window, adapters: evaluateform.Rows) -> Html:
        return evaluateform.card(self.context, window, adapters)

    def _empty(self) -> Html:
        t = self.t
        return parts.empty(
            t("evaluate.no_adapters"),
            t("evaluate.no_adapters_text"),
            parts.button(t("evaluate.go_train"), "go", "train", kind="primary"),
            parts.button(t("nav.adapters"), "go", "adapters"),
        )

    def _work(self, window: Window) -> list[Html]:
        """Running evaluations of any window, and failed ones of this window."""
        t, cards = self.t, []
        mine = [name for name in window.state(EvaluateState).jobs if (self.home.jobs / name / "job.json").is_file()]
        names = {found.name for found in jobs.running(self.home, KIND)} | set(mine)
        for found in (Job(self.home.jobs / name) for name in sorted(names)):
            state = found.state()
            if jobview.active(state):
                title = t("evaluate.of", name=found.arguments.get("adapter") or found.arguments.get("model"))
                doing = t.get(f"evaluate.at_{state.text}") or sentence(t, state.text)
                cards.append(jobview.working(t, self.f, found, title, doing))
            elif found.name in mine and state.error is not None:
                buttons = h(
                    "div",
                    parts.button(t("ended.retry"), "job.again", found.name, kind="small"),
                    parts.button(t("common.close"), "job.close", found.name, kind="small quiet"),
                    class_="row",
                )
                cards.append(jobview.problem(t, state, buttons) or Html(""))
        return cards

    def _result(self, window: Window, saved: Saved) -> Html:
        look = window.state(EvaluateState).rows
        measured = {metric.key: metric for metric in saved.metrics()}
        metric = measured.get(look.metric) or measured[saved.result["metric"]]
        shown = [
            evaluateview.result(self.t, self.f, saved),
            evaluateview.rows(self.t, self.f, saved, look.which, metric, look.page),
        ]
        return h("div", shown, class_="stack")

    def _shown(self, window: Window) -> Saved | None:
        """The evaluation to show: the window's selection, else the newest of its adapter."""
        shared = window.shared
        name = shared.evaluation if window.state(EvaluateState).opened_for == shared.adapter else ""
        if not name:
            newest = store.every(self.home, shared.adapter or None)
            name = newest[0].name if newest else ""
        if not name or not (self.home.evaluations / name / store.RESULT).is_file():
            return None
        if name not in self._saved:
            while len(self._saved) >= KEPT:
                self._saved.pop(next(iter(self._saved)), None)
            self._saved[name] = store.find(self.home, name)
        return self._saved[name]

    def _look_at(self, window: Window, name: str) -> None:
        """Show an evaluation until another adapter is selected, here or on another page."""
        state, shared = window.state(EvaluateState), window.shared
        shared.evaluation, state.opened_for = name, shared.adapter
        state.reset("rows", "vote")

    def _voted(self, window: Window) -> tuple[Saved, Ballot] | None:
        """The evaluation and ballot of the window's vote; None if it is not voting."""
        vote = window.state(EvaluateState).vote
        saved = self._shown(window) if vote.on else None
        if saved is None or "tuned" not in saved.conditions():
            return None
        against = evaluateview.against(saved, vote.against)
        key = (saved.name, against)
        if key not in self._ballots:
            while len(self._ballots) >= KEPT:
                self._ballots.pop(next(iter(self._ballots)), None)
            self._ballots[key] = Ballot(saved, against)
        return saved, self._ballots[key]

    # ── handlers ──────────────────────────────────────────────────────────────────────────────────────────

    def _open_finished(self, window: Window) -> None:
        """Open the result of each finished evaluation that this window started."""
        page_state = window.state(EvaluateState)
        waiting = page_state.jobs
        for name in waiting:
            found = Job(self.home.jobs / name)
            state = found.state() if (found.folder / "job.json").is_file() else None
            if state is not None and state.status is Status.FINISHED and state.result:
                self._look_at(window, str(state.result["evaluation"]))
            elif state is not None and state.status is not Status.STOPPED:
                continue  # running, or failed and not shown yet
            page_state.jobs = tuple(other for other in page_state.jobs if other != name)

    def _press(self, window: Window, event: Any) -> dict[Any, Any]:
        do, value, data = parts.pressed(event)
        place, _, what = do.partition(".")
        if do == "go":
            return {self.context.nav: self.context.go(window, value)}
        if leftovers.remove_damaged_job(self.context, do, value):
            return self._draw(window)
        if do == "start":
            self._start(window)
        elif do == "form.adapter":
            window.shared.adapter, window.shared.evaluation = value, ""
            window.state(EvaluateState).reset("rows")
        elif do == "form.set":
            evaluateform.changed(self.context, window, data.get("key", ""), value)
        elif place == "rows":
            self._look(window, what, value)
        elif place == "vote":
            self._vote(window, what, value, data.get("row", ""))
        elif do == "earlier.show":
            self._look_at(window, value)
        elif do == "earlier.remove":
            return self._remove(window, value)
        elif do == "trash.back":
            store.put_back(trash.find(self.home, value), self.home)
        elif do == "trash.empty":
            leftovers.empty_trash(self.context, store.KIND)
        elif place == "job":
            self._job(window, what, value)
        return self._draw(window)

    def _start(self, window: Window) -> None:
        arguments = evaluateform.arguments(self.context, window, self.library.listing())
        job = jobs.start_once(self.home, KIND, arguments)
        state = window.state(EvaluateState)
        state.jobs = (*(name for name in state.jobs if name != job.name), job.name)

    def _look(self, window: Window, what: str, value: str) -> None:
        """Change which rows of the result are listed, or their page."""
        state = window.state(EvaluateState)
        if what == "page":
            state.rows = replace(state.rows, page=int(value))
        elif what == "metric":
            state.rows = replace(state.rows, metric=value, page=0)
        elif what == "which":
            state.rows = replace(state.rows, which=next(one for one in WHICH if one == value), page=0)

    def _job(self, window: Window, what: str, name: str) -> None:
        found = jobs.find(self.home, name)
        if what == "stop":
            found.ask_to_stop()
        elif what == "again":
            jobs.restart(found, self.home)
        elif what == "close":
            state = window.state(EvaluateState)
            state.jobs = tuple(other for other in state.jobs if other != name)

    def _vote(self, window: Window, what: str, value: str, row: str) -> None:
        state = window.state(EvaluateState)
        if what == "open":
            state.vote = VoteLook(on=True)
        elif what == "close":
            state.reset("vote")
        elif what == "against":
            state.vote = VoteLook(on=True, against="few_shot" if value == "few_shot" else "base")
        elif what == "reveal":
            state.vote = replace(state.vote, revealed=not state.vote.revealed)
        elif (voted := self._voted(window)) is not None:
            ballot = voted[1]
            waiting = ballot.waiting()
            if what == "undo":
                ballot.undo()
            elif what == "cast" and waiting and str(waiting[0].row) == row:
                ballot.vote(waiting[0], next(side for side in SIDES if side == value))

    def _remove(self, window: Window, name: str) -> dict[Any, Any]:
        removed = store.throw_away(self.home, name)
        if window.shared.evaluation == name:
            window.shared.evaluation = ""
        notice = leftovers.removed_notice(self.context, [removed], UNDO)
        return {**self._draw(window), self.context.notice: notice}

    def _undo(self, window: Window, value: str) -> dict[Any, Any]:
        for key in leftovers.trash_keys(value):
            store.put_back(trash.find(self.home, key), self.home)
        return self._draw(window)

    def _uploaded(self, window: Window, name: str | None) -> dict[Any, Any]:
        """Copy an uploaded file into the home folder. Raises SpecError, DiskFull."""
        if not name or not Path(name).is_file():
            raise SpecError(as_message(self.t("evaluate.upload_failed")))
        place = kept.keep(Path(name), self.home.data, Path(name).name)
        state = window.state(EvaluateState)
        state.form = replace(state.form, rows="file", file=str(place))
        return {**self._draw(window), self.upload: None}
