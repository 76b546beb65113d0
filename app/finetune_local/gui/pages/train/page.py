"""Train: choose settings, start a run, watch it; pause, resume, or stop it and keep the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune_local.gui.pages.train import setup
from finetune_local.gui.pages.train.setup import Outlook
from finetune_local.gui.shell.pages import RUN, has_trained, set_up_like
from finetune_local.gui.widgets import parts, runview
from finetune_local.gui.widgets.form import Form
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.gui.widgets.measures import objective_title
from finetune_local.runtime.status import Status
from finetune_local.spec.run import parse_spec
from finetune_local.spec.tuners import presets
from finetune_local.system.errors import FinetuneError, SpecError
from finetune_local.system.messages import as_message
from finetune_local.training.events import Failed
from finetune_local.training.run_folder import follow, runs
from finetune_local.training.run_folder.runs import Run

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window
    from finetune_local.training.run_folder.watch import Watch

TITLE, ORDER = "nav.train", 30
SHOWS = (RUN,)
LOWER_RATE = 3.0


def completed(context: Context, _window: Window) -> bool:
    """Whether a run has produced an adapter."""
    return has_trained(context.home)


def build(context: Context) -> None:
    """Build the page (see gui/shell/main.py)."""
    TrainPage(context).build()


class TrainPage:
    """The page's components and their handlers."""

    def __init__(self, context: Context) -> None:
        self.context, self.t = context, context.t
        self.form = Form(context.t)
        self.outlook = Outlook(context)

    def build(self) -> None:
        """Create the components and connect their events."""
        import gradio as gr

        t = self.t
        self.head = parts.view(id="train-head")
        with gr.Column(elem_id="train-setup") as self.setup:
            self.subject = parts.view(id="train-subject")
            self.methods = parts.view(id="train-methods")
            self.goals = parts.view(id="train-goals")
            with gr.Accordion(t("train.all_settings"), open=False, elem_id="train-settings"):
                self.form.build()
            self.summary = parts.view(id="train-summary")
            with gr.Row(elem_id="train-start-row"):
                self.name = gr.Textbox(
                    label=t("train.name"),
                    placeholder=t("train.name_automatic"),
                    elem_id="train-name",
                    max_lines=1,
                    scale=2,
                )
                self.start = gr.Button(t("train.start"), variant="primary", elem_id="train-start", scale=1)
        with gr.Column(visible=False, elem_id="train-run") as self.live:
            self.state = parts.view(id="train-state")
            self.curves = parts.view(id="train-curves")
            self.answers = parts.view(id="train-answers")
            self.log = parts.view(id="train-log")
        self._wire()

    def _wire(self) -> None:
        import gradio as gr

        context, controls = self.context, self.form.listed()
        self.cards = [self.subject, self.methods, self.goals, self.summary]
        everything = [self.head, self.setup, self.live, *self.cards, self.name, *controls, *self._live_views()]
        context.on_show("train", self._show, everything)
        self.ticked = [self.head, self.setup, self.live, *self.cards, *self._live_views()]
        context.on_tick("train", self._tick, [*self.ticked, context.notice])
        context.on(self.subject.click, self._go, None, context.nav)
        context.on(self.methods.click, self._choose, None, [self.methods, self.goals, self.summary, *controls])
        context.on(self.goals.click, self._choose, None, [self.methods, self.goals, self.summary, *controls])
        context.on(
            lambda *given, **more: gr.on([control.input for control in [*controls, self.name]], *given, **more),
            self._typed,
            [self.name, *controls],
            [self.subject, self.goals, self.summary, *controls],
            latest=True,
        )
        context.on(self.start.click, self._start_pressed, [self.name, *controls], everything)
        context.on(self.head.click, self._act, None, [*everything, context.nav])
        context.on(self.state.click, self._act, None, [*everything, context.nav])
        context.on_notice("train.anyway", lambda window, _value: self._start(window, force=True), everything)

    def _live_views(self) -> list[Any]:
        return [self.state, self.curves, self.answers, self.log]

    # ── drawing ────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self, window: Window) -> Run | None:
        """The run of this window; else the running one, unless settings are being edited."""
        shared = window.shared
        if shared.run:
            try:
                return runs.find(self.context.home, shared.run)
            except SpecError:
                shared.run = ""
                return None
        if not shared.setting_up and (at_work := runs.running(self.context.home)):
            shared.run = at_work[0].name
            return at_work[0]
        return None

    def _show(self, window: Window) -> dict[Any, Any]:
        """Draw the whole page, under the window's lock: a later event sees the changes of an earlier one."""
        with window.drawing:
            run = self._run(window)
            views = self._settings(window) if run is None else self._live(window, run)
            return {**self._sides(run), **views}

    def _sides(self, run: Run | None) -> dict[Any, Any]:
        """The visible side of the page: the settings of a new run, or the run."""
        import gradio as gr

        return {self.setup: gr.update(visible=run is None), self.live: gr.update(visible=run is not None)}

    def _settings(self, window: Window) -> dict[Any, Any]:
        """The settings of a run."""
        key = setup.method_key(window)
        forecast = self.outlook.of(setup.tables_of(self.context, window), window.shared.data_facts)
        updates = self.form.updates(window.shared.form, key, forecast.automatic)
        return {
            self.head: self._setup_head(),
            **self._setup_views(window),
            self.name: window.shared.run_name,
            **dict(zip(self.form.listed(), updates, strict=True)),
        }

    def _setup_head(self) -> Html:
        return parts.header(self.t("train.title"), self.t("train.lead"))

    def _setup_views(self, window: Window) -> dict[Any, Any]:
        context, data = self.context, window.shared.data_facts
        now = self.outlook.of(setup.tables_of(context, window), data)
        by_method = {key: self.outlook.of(setup.tables_of(context, window, key=key), data) for key in presets()}
        by_goal = {goal: self.outlook.of(setup.tables_of(context, window, goal=goal), data) for goal in setup.GOALS}
        return {
            self.subject: setup.subject(context, window),
            self.methods: setup.method_cards(context, window, by_method),
            self.goals: setup.goal_cards(context, window, by_goal),
            self.summary: setup.summary(context, now, self._missing(window)),
        }

    def _missing(self, window: Window) -> list[str]:
        if not window.shared.data.files:
            return [self.t("train.no_data_problem")]
        objective = setup.objective(window)
        if objective.examples.issuperset(window.shared.data_kinds):
            return []
        return [self.t("train.objective_misfit", objective=objective_title(self.t, objective))]

    def _live(self, window: Window, run: Run) -> dict[Any, Any]:
        """The views of a run that have changed, and the head."""
        context = self.context
        watched = context.watch(run.folder).refresh()
        state = run.process_state()
        drawn: dict[Any, Html] = {
            self.head: _head(context, watched, state.status),
            self.state: join(
                [
                    runview.progress(context, watched, state.status),
                    runview.ending(context, watched, state),
                    _remedies(context, watched, state.status),
                    runview.figures(context, watched, state.status),
                ]
            ),
            self.curves: runview.curves(context, watched),
            self.answers: runview.answers(context, watched),
            self.log: runview.log(context, watched),
        }
        changed = {view: html for view, html in drawn.items() if window.changed(f"train{view._id}", html)}
        return {**changed, self.head: drawn[self.head]}  # the head belongs to both sides: see _tick

    def _tick(self, window: Window) -> dict[Any, Any]:
        """The views that have changed, and always the head and the visible side: if two results reached the browser in reverse order,
        this corrects it a second later.
        """
        with window.drawing:
            run = self._run(window)
            if run is None:
                return {**self._sides(None), self.head: self._setup_head()}
            watched = self.context.watch(run.folder).refresh()
            if isinstance(watched.end, Failed) and follow.forget_untrained(run, watched.end):
                # The error occurred before training started: return to the settings, where it can be corrected.
                window.shared.run, window.shared.setting_up = "", True
                shown = {view: html for view, html in self._show(window).items() if view in self.ticked}
                return {**shown, self.context.notice: self.context.problem(_error_of(watched.end))}
            return {**self._sides(run), **self._live(window, run)}

    # ── handlers ──────────────────────────────────────────────────────────────────────────────────────────

    def _go(self, window: Window, event: Any) -> Any:
        return self.context.go(window, parts.pressed(event)[1])

    def _choose(self, window: Window, event: Any) -> dict[Any, Any]:
        do, value, _ = parts.pressed(event)
        if do == "method":
            window.shared.method = value
        else:
            window.shared.goal = value
        forecast = self.outlook.of(setup.tables_of(self.context, window), window.shared.data_facts)
        updates = self.form.updates(window.shared.form, setup.method_key(window), forecast.automatic)
        shown = self._setup_views(window)
        shown.pop(self.subject)
        return {**shown, **dict(zip(self.form.listed(), updates, strict=True))}

    def _typed(self, window: Window, name: str, *values: Any) -> dict[Any, Any]:
        key, objective = setup.method_key(window), setup.objective(window)
        window.shared.form, window.shared.run_name = self.form.read(values, key), name.strip()
        if setup.objective(window) is not objective:
            window.shared.data_facts = None  # how many examples and rows the data becomes
        context, data = self.context, window.shared.data_facts
        forecast = self.outlook.of(setup.tables_of(context, window), data)
        by_goal = {goal: self.outlook.of(setup.tables_of(context, window, goal=goal), data) for goal in setup.GOALS}
        placeholders = self.form.placeholders(window.shared.form, key, forecast.automatic)
        return {
            self.subject: setup.subject(context, window),
            self.goals: setup.goal_cards(context, window, by_goal),
            self.summary: setup.summary(context, forecast, self._missing(window)),
            **dict(zip(self.form.listed(), placeholders, strict=True)),
        }

    def _start_pressed(self, window: Window, name: str, *values: Any) -> dict[Any, Any]:
        window.shared.form = self.form.read(values, setup.method_key(window))
        window.shared.run_name = name.strip()
        return self._start(window)

    def _start(self, window: Window, force: bool = False) -> dict[Any, Any]:
        t, context = self.t, self.context
        if problem := self._missing(window):
            raise SpecError(as_message(problem[0]))
        others = runs.running(context.home)
        if others and not force:
            anyway = parts.button(t("train.anyway"), "train.anyway", kind="small")
            title, text = t("train.other_title"), t("train.other_text", run=others[0].name)
            return {context.notice: parts.notice(t, "note", title, text, anyway)}
        spec = parse_spec(setup.tables_of(context, window), t("train.form"))
        run = follow.create_unchecked(spec, context.home, window.shared.made_from or None)
        follow.start(run, context.home)
        with window.drawing:
            window.shared.run = run.name
            window.shared.reset("setting_up", "run_name", "made_from")
            return self._show(window)

    def _act(self, window: Window, event: Any) -> dict[Any, Any]:
        with window.drawing:
            return self._acted(window, event)

    def _acted(self, window: Window, event: Any) -> dict[Any, Any]:
        do, value, _ = parts.pressed(event)
        context = self.context
        if do == "new":
            window.shared.reset("run", "made_from")
            window.shared.setting_up = True
            return self._show(window)
        run = self._run(window)
        if do == "go":
            if run is not None:
                window.shared.adapters, window.shared.adapter = (run.name,), run.name
            return {context.nav: context.go(window, value)}
        if run is None:
            return self._show(window)
        if do == "pause":
            runs.ask_to_stop(run)
        elif do == "finish":
            runs.ask_to_stop(run, finish=True)
        elif do == "resume":
            follow.start(run, context.home)
        elif do == "change":
            self._take_over(window, run, {})
            return self._show(window)
        elif do == "lower":
            rate = (run.spec.training.learning_rate or 0.0) / LOWER_RATE
            self._take_over(window, run, {"training.learning_rate": f"{rate:.1e}"})
            return self._show(window)
        elif do == "less":
            self._take_over(
                window, run, {"training.gradient_checkpointing": "true", "training.micro_batch_tokens": "512"}
            )
            return self._show(window)
        return self._live(window, run)

    def _take_over(self, window: Window, run: Run, changed: Mapping[str, str]) -> None:
        """Edit the settings of a new run like another one, with some settings changed."""
        set_up_like(window, run, changed)


def _head(context: Context, run: Watch, status: Status) -> Html:
    t, spec = context.t, run.started
    description = f"{spec.backend} · {spec.device} · {spec.precision}" if spec else ""
    buttons = []
    if status is Status.RUNNING:
        stopping = run.run.stop_file.exists()
        buttons = [
            parts.button(
                t("train.pausing" if stopping else "train.pause"),
                "pause",
                disabled=stopping,
                title=t("train.pause_title"),
            ),
            parts.button(t("train.finish"), "finish", disabled=stopping, title=t("train.finish_title")),
        ]
    else:
        if status in runview.RESUMABLE:
            buttons.append(parts.button(t("train.resume"), "resume", kind="primary"))
        if run.run.adapter.exists():
            kind = "primary" if status is Status.FINISHED else ""
            buttons += [
                parts.button(t("train.chat"), "go", "chat", kind=kind),
                parts.button(t("train.evaluate"), "go", "evaluate"),
            ]
            buttons.append(parts.button(t("train.export"), "go", "export"))
    buttons.append(parts.button(t("train.new"), "new", kind="quiet"))
    return parts.header(run.run.name, description, runview.status_badge(t, status), *buttons)


def _remedies(context: Context, run: Watch, status: Status) -> Html:
    """Buttons that fix the error that ended a run."""
    t, end = context.t, run.end
    if status is not Status.FAILED or not isinstance(end, Failed):
        return Html("")
    buttons = []
    if end.error == "TrainingDiverged":
        buttons.append(parts.button(t("train.lower_rate"), "lower", kind="primary"))
    if end.error == "OutOfMemory":
        buttons.append(parts.button(t("train.less_memory"), "less", kind="primary"))
    if end.error == "DiskFull":
        buttons.append(parts.button(t("errors.go_to", page=t("nav.settings")), "go", "settings"))
    buttons.append(parts.button(t("train.change"), "change"))
    return h("div", buttons, class_="row")


def _error_of(end: Failed) -> FinetuneError:
    error = end.exception()
    return error if isinstance(error, FinetuneError) else SpecError(as_message(end.message))
