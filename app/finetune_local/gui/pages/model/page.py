"""Model: installed, recommended and searched base models; whether each fits; downloads; which one is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters.library import made_on
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.pages.model import basemodels
from finetune_local.gui.pages.model.basemodels import BaseModels
from finetune_local.gui.pages.model.offers import Offers
from finetune_local.gui.pages.model.state import ModelState
from finetune_local.gui.pages.model.views import HereViews
from finetune_local.gui.widgets import leftovers, parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.models import job_download
from finetune_local.models.hub.search import Hit, search
from finetune_local.models.install import installed, remove
from finetune_local.models.job_download import KIND as DOWNLOAD
from finetune_local.models.local import forget_folder
from finetune_local.models.memory.estimate import facts_of
from finetune_local.models.resolve import find
from finetune_local.runtime.job import Job
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system import preferences
from finetune_local.system.errors import DownloadFailed, FinetuneError, ModelError
from finetune_local.system.messages import message_of
from finetune_local.system.paths import located
from finetune_local.training.run_folder import runs

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window

TITLE, ORDER = "nav.model", 10
SHOWS, SOLVES = (DOWNLOAD.key,), (ModelError, DownloadFailed)
_NOTHING = ("", Html(""))
_MOST_KEPT = 40


def completed(context: Context, _window: Window) -> bool:
    """Whether a model is installed."""
    return bool(installed(context.home.models))


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    ModelPage(context).build()


class ModelPage:
    """The page's components and their handlers."""

    def __init__(self, context: Context) -> None:
        self.context, self.t, self.f, self.home = context, context.t, context.f, context.home
        self.models = BaseModels(context.home, context.machine.device)
        self.offers = Offers(self.t, self.f, self.models)
        self.views = HereViews(self.t, self.f, self.models, self.offers)
        self._hits: dict[str, tuple[str, list[Hit]]] = {}
        self._told: dict[tuple[str, int], Html] = {}
        self._parts: dict[tuple[str, Any], Html] = {}
        self._were: set[str] = set()

    def build(self) -> None:
        """Create the components and connect their events."""
        import gradio as gr

        t, context = self.t, self.context
        self.head, self.downloads = parts.view(id="model-head"), parts.view(id="model-downloads")
        self.here = parts.view(id="model-here")
        with gr.Column(elem_id="model-bring", elem_classes=["card"]):
            parts.view(h("h2", t("model.bring")))
            self.path = gr.Textbox(
                label=t("model.path"), info=t("model.path_help"), elem_id="model-path", max_lines=1, interactive=True
            )
            self.copy = gr.Checkbox(False, label=t("model.copy"), elem_id="model-copy", interactive=True)
            with gr.Row(elem_classes=["model-buttons"]):
                self.add = gr.Button(t("model.add"), elem_id="model-add", size="sm", scale=0)
                parts.view(self._browse())
        self.catalogue = parts.view(id="model-catalogue")
        with gr.Column(elem_id="model-search", elem_classes=["card"]) as self.search_box:
            parts.view(h("h2", t("model.search")))
            with gr.Row(elem_classes=["model-buttons"]):
                self.words = gr.Textbox(
                    label=t("model.search_words"), info=t("model.search_help"), placeholder="qwen 0.6b",
                    elem_id="model-words", max_lines=1, scale=4, interactive=True,
                )  # fmt: skip
                self.ask = gr.Button(t("model.search_start"), elem_id="model-search-start", size="sm", scale=0)
        self.results = parts.view(id="model-results")
        self.all = [self.head, self.downloads, self.here, self.catalogue]
        context.on_show("model", self._show, [*self.all, self.search_box, self.words, self.results])
        context.on_tick("model", self._tick, self.all)
        context.on_tick(None, self._select_finished, [])
        for trigger in (self.add.click, self.path.submit):
            context.on(trigger, self._add_own, [self.path, self.copy], [*self.all, self.path])
        for trigger in (self.ask.click, self.words.submit):
            context.on(trigger, self._search, self.words, self.results)
        for view in self.all:
            context.on(view.click, self._press, None, [*self.all, self.results, context.nav])
        context.on(self.results.click, self._press_results, None, [*self.all, self.results, context.nav])

    def _browse(self) -> Html:
        def pick(label: str, kind: str) -> Html:
            return h(
                "button",
                label,
                type="button",
                class_="button small needs-window",
                data_pick=kind,
                data_into="model-path",
            )

        return h(
            "div",
            pick(self.t("model.browse_folder"), "folder"),
            pick(self.t("model.browse_file"), "file"),
            class_="row",
        )

    # ── drawing ────────────────────────────────────────────────────────────────────────────────────────────

    def _show(self, window: Window) -> dict[Any, Any]:
        import gradio as gr

        window.state(ModelState).removing = ""
        self.models.look()
        offline = self.context.preferences.offline
        return {
            **self._draw(window),
            self.search_box: gr.update(visible=not offline),
            self.words: window.state(ModelState).search,
            self.results: "" if offline else self._found(window),
        }

    def _tick(self, window: Window) -> dict[Any, Any]:
        if self.models.looked_on not in (None, self.models.device()):
            self.models.look()  # by now the device is known
        return self._draw(window)

    def _draw(self, window: Window) -> dict[Any, Any]:
        """The views that have changed."""
        unfinished = job_download.unfinished(self.home)
        if self._were - (now := {found.name for found in unfinished}):
            self.models.refresh()
        self._were = now
        chosen, offline, busy = self._chosen(window), self.context.preferences.offline, basemodels.busy(unfinished)
        details, removing = self._details(window), self._removing(window)
        folders = [located(place) for place in self.context.preferences.model_folders]
        version, looking, used = self.models.version, self.models.looking, self._used(chosen)
        keys = (version, frozenset(busy), used, offline)
        drawn = {
            self.head: self._kept("head", (keys, chosen), lambda: self.views.head(chosen, busy, offline)),
            self.downloads: join(
                [basemodels.downloads(self.t, self.f, unfinished), leftovers.damaged_jobs(self.context, DOWNLOAD)]
            ),
            self.here: self._kept(
                "here",
                (version, looking, chosen, details, removing, *folders),
                lambda: self.views.here(chosen, details, removing, folders),
            ),
            self.catalogue: self._kept("catalogue", keys, lambda: self.offers.catalogue(busy, used, offline)),
        }
        return {view: html for view, html in drawn.items() if window.changed(f"model {view.elem_id}", html)}

    def _kept(self, part: str, made_from: Any, make: Callable[[], Html]) -> Html:
        """A part of the page, rebuilt only if its inputs have changed, because it is requested every second."""
        if (part, made_from) not in self._parts:
            if len(self._parts) > _MOST_KEPT:
                self._parts.clear()
            self._parts[part, made_from] = make()
        return self._parts[part, made_from]

    def _chosen(self, window: Window) -> str:
        return window.shared.model or DEFAULT_MODEL

    def _used(self, chosen: str) -> str:
        found = self.models.now.find(chosen)
        return found.use if found else chosen

    def _details(self, window: Window) -> tuple[str, Html]:
        if not (use := window.state(ModelState).details):
            return _NOTHING
        key = (use, self.models.version)
        if key not in self._told:
            self._told.clear()
            try:
                self._told[key] = self.views.details(facts_of(find(use, self.home)))
            except FinetuneError as error:
                self._told[key] = h("p", sentence(self.t, message_of(error)), class_="hint bad text")
        return use, self._told[key]

    def _removing(self, window: Window) -> tuple[str, Html]:
        if (name := window.state(ModelState).removing) not in installed(self.home.models):
            return _NOTHING
        return name, self._kept("removing", (name, self.models.version), lambda: self._question(name))

    def _question(self, name: str) -> Html:
        at_work = [run.name for run in runs.running(self.home) if run.spec.model.id == name]
        return self.views.removing(name, made_on(name, self.home), at_work)

    def _found(self, window: Window) -> Html:
        words, hits = self._hits.get(window.name, ("", []))
        if not words or words != window.state(ModelState).search:
            return Html("")
        busy = basemodels.busy(job_download.unfinished(self.home))
        return self.offers.hits(words, hits, busy, self.context.preferences.offline)

    # ── handlers ──────────────────────────────────────────────────────────────────────────────────────────

    def _press(self, window: Window, event: Any) -> dict[Any, Any]:
        do, value, _ = parts.pressed(event)
        state = window.state(ModelState)
        if leftovers.remove_damaged_job(self.context, do, value):
            return self._draw(window)
        match do:
            case "continue":
                window.shared.model = self._chosen(window)
                return {self.context.nav: self.context.go(window, "data")}
            case "settings":
                return {self.context.nav: self.context.go(window, "settings")}
            case "use":
                window.shared.model = value
            case "details":
                state.details = "" if state.details == value else value
            case "refresh":
                self.models.look()
            case "download":
                self._started(window, job_download.start(value, self.home))
            case "resume":
                self._started(window, job_download.resume(value, self.home))
            case "pause":
                job_download.pause(value, self.home)
            case "cancel":
                job_download.cancel(value, self.home)
            case "remove" | "remove_no":
                state.removing = value if do == "remove" else ""
            case "remove_yes":
                return self._remove(window, value)
            case "forget":
                self._forget(value)
        return {**self._draw(window), self.results: self._found(window)}

    def _started(self, window: Window, job: Job) -> None:
        """Note a download that this window started: its model is selected once it is installed."""
        state = window.state(ModelState)
        state.waiting = tuple(dict.fromkeys((*state.waiting, job.name)))

    def _select_finished(self, window: Window) -> None:
        """Select the model of each finished download that this window started."""
        state = window.state(ModelState)
        for name in state.waiting:
            made = job_download.result_of(name, self.home)
            if made is not None:
                window.shared.model = made
            if made is not None or not (self.home.jobs / name).exists():
                state.waiting = tuple(other for other in state.waiting if other != name)

    def _remove(self, window: Window, name: str) -> dict[Any, Any]:
        window.state(ModelState).removing = ""
        remove(name, self.home.models)
        if window.shared.model == name:
            window.shared.model = ""
        self.models.refresh()
        return {
            **self._draw(window),
            self.context.notice: parts.success_notice(self.t, self.t("model.removed", name=name)),
        }

    def _forget(self, place: str) -> None:
        forget_folder(Path(place))
        self.context.preferences = preferences.load()
        self.models.look()

    def _add_own(self, window: Window, path: str, copy: bool) -> dict[Any, Any]:
        added = job_download.add(path, self.home, copy=copy)
        updates: dict[Any, Any] = {}
        if isinstance(added, Job):
            self._started(window, added)
        else:
            self.context.preferences = preferences.load()
            good = [found for found in added if not found.problem]
            if len(good) == 1 and good[0].kind == "folder":
                window.shared.model = good[0].use
            self.models.look()
            updates[self.context.notice] = parts.success_notice(self.t, self.t("model.added", n=len(good)))
        return {**self._draw(window), **updates, self.path: ""}

    def _search(self, window: Window, words: str) -> Iterator[dict[Any, Any]]:
        words = " ".join(words.split())
        window.state(ModelState).search = words
        if not words:
            yield {self.results: ""}
            return
        yield {self.results: h("p", self.t("model.searching", words=words), class_="soft", role="status")}
        try:
            self._hits[window.name] = (words, search(words))
        except FinetuneError as error:
            again = parts.button(self.t("model.retry"), "search", kind="small")
            text = h("p", sentence(self.t, message_of(error)), class_="text")
            yield {self.results: h("div", text, again, class_="hint bad", role="alert")}
            return
        yield {self.results: self._found(window)}

    def _press_results(self, window: Window, event: Any) -> Iterator[dict[Any, Any]]:
        if parts.pressed(event)[0] == "search":
            yield from self._search(window, window.state(ModelState).search)
        else:
            yield self._press(window, event)
