"""The Train page before a run: base model and data, method, effort, and the forecast."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.shell.pages import chosen_model
from finetune_local.gui.widgets import form as forms
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.controls import element_id
from finetune_local.gui.widgets.html import Html, h
from finetune_local.gui.widgets.measures import objective_title
from finetune_local.models.install import installed
from finetune_local.spec.objectives import Objective, objective_named
from finetune_local.spec.run import DEFAULT_MODEL, Goal, RunSpec
from finetune_local.spec.tuners import presets, recommended
from finetune_local.system.paths import located
from finetune_local.training.run_folder.forecast import Forecast, backends_without

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window


import json
import time
from typing import TYPE_CHECKING

from finetune_local.models.folder import ModelFolder
from finetune_local.models.resolve import find
from finetune_local.system.errors import ModelError
from finetune_local.training.run_folder import facts, runs
from finetune_local.training.run_folder.forecast import DataFacts, Pace, Work, forecast, pace, work_of_run

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context


GOALS: tuple[str, ...] = get_args(Goal)

RECENT = 30
"""How many of the newest runs are used to estimate speed."""
REMEMBERED = 400
"""Forecasts that are cached."""
RECENT_SECONDS = 10.0
"""Seconds for which facts of earlier runs are cached."""


def method_key(window: Window) -> str:
    """The selected method."""
    return window.shared.method if window.shared.method in presets() else recommended()[0].key


def objective(window: Window) -> Objective:
    """The chosen objective, with default settings."""
    return objective_named(forms.objective_of(window.shared.form))


def goal_of(window: Window) -> str:
    """The selected goal."""
    usual = str(RunSpec.model_fields["goal"].default)
    return window.shared.goal if window.shared.goal in GOALS else usual


def tables_of(context: Context, window: Window, key: str | None = None, goal: str | None = None) -> dict[str, object]:
    """The run's settings in this window, as tables of a run file, optionally with another method or goal."""
    return forms.tables(
        window.shared.form,
        model=chosen_model(context, window),
        data=window.shared.data.model_dump(mode="json", exclude_defaults=True),
        key=key or method_key(window),
        goal=goal or goal_of(window),
        name=window.shared.run_name,
    )


def subject(context: Context, window: Window) -> Html:
    """Model and data, each with a button to change it."""
    t, f = context.t, context.f
    model = chosen_model(context, window)
    files = [Path(name).name for name in window.shared.data.files]
    known = window.shared.data_facts
    there = model in installed(context.home.models) or located(model).exists()
    rows = (
        t("train.rows_tokens", n=f.number(known.rows), rows=f.number(known.rows), tokens=f.number(known.tokens))
        if known
        else ""
    )
    return h(
        "div",
        parts.card(
            h("strong", model, class_="subject-name"),
            h("p", t("train.model_will_be_downloaded"), class_="soft")
            if not there and model == DEFAULT_MODEL
            else None,
            parts.button(t("train.change_model"), "go", "model", kind="small"),
            title=t("train.model"),
        ),
        parts.card(
            h("strong", ", ".join(files), class_="subject-name")
            if files
            else h("p", t("train.no_data"), class_="soft"),
            h("p", rows, class_="soft") if rows else None,
            h("p", t("train.learned_by", objective=objective_title(t, objective(window))), class_="soft")
            if files
            else None,
            parts.button(
                t("train.change_data" if files else "train.add_data"),
                "go",
                "data",
                kind="small" if files else "primary small",
            ),
            title=t("train.data"),
        ),
        class_="columns even",
    )


def method_cards(context: Context, window: Window, forecasts: Mapping[str, Forecast]) -> Html:
    """A card for each method: a summary, estimated memory and time."""
    key = method_key(window)
    first = [preset.key for preset in recommended()]
    first += [key] if key not in first else []
    rest = [name for name in presets() if name not in first]
    t = context.t
    return parts.card(
        h(
            "div",
            [_card(context, name, name == key, forecasts.get(name)) for name in first],
            class_="methods",
            role="radiogroup",
            aria_label=t("train.method"),
        ),
        h(
            "details",
            h("summary", t("train.more_methods", n=len(rest))),
            h(
                "div",
                [_card(context, name, False, forecasts.get(name)) for name in rest],
                class_="methods",
                role="radiogroup",
                aria_label=t("train.method"),
            ),
            data_keep="more-methods",
        ),
        title=t("train.method"),
    )


def _card(context: Context, key: str, chosen: bool, forecast: Forecast | None) -> Html:
    t, found = context.t, presets()[key]
    lacking = backends_without(key)
    figures: list[Any] = []
    if forecast is not None and forecast.problems:
        figures = [parts.badge(t("train.not_available"), "bad"), h("small", sentence(t, forecast.problems[0]))]
    elif forecast is not None and forecast.memory is not None:
        figures = [
            verdict_badge(context, forecast),
            h("small", t("train.card_memory", size=context.f.size(forecast.memory.total))),
            h("small", t("train.card_time", span=context.f.about(forecast.seconds))) if forecast.seconds else None,
        ]
    if lacking:
        figures.append(h("small", t("train.not_on", backends=", ".join(lacking))))
    return h(
        "button",
        h("strong", t.get(f"methods.{key}.title") or found.title),
        h("span", t.get(f"methods.{key}.summary") or found.summary),
        h("span", figures, class_="row"),
        type="button",
        role="radio",
        aria_checked="true" if chosen else "false",
        class_="choice chosen" if chosen else "choice",
        data_do="method",
        data_value=key,
    )


def goal_cards(context: Context, window: Window, forecasts: Mapping[str, Forecast]) -> Html:
    """A card for each goal, with its steps and time."""
    t, f, goal = context.t, context.f, goal_of(window)
    shown = []
    for name in GOALS:
        found = forecasts.get(name)
        figures = ""
        if found is not None and found.steps:
            figures = t("train.goal_steps", n=f.number(found.steps))
            if found.seconds:
                figures += " · " + f.about(found.seconds)
        shown.append(
            h(
                "button",
                h("strong", t(f"train.goal_{name}")),
                h("span", t(f"train.goal_{name}_text")),
                h("small", figures) if figures else None,
                type="button",
                role="radio",
                aria_checked="true" if name == goal else "false",
                class_="choice chosen" if name == goal else "choice",
                data_do="goal",
                data_value=name,
            )
        )
    return parts.card(
        h("div", shown, class_="methods goals", role="radiogroup", aria_label=t("train.goal")), title=t("train.goal")
    )


def summary(context: Context, forecast: Forecast, missing: list[str]) -> Html:
    """Problems of the settings, or the forecast."""
    t = context.t
    problems = [*missing, *(sentence(t, text) for text in forecast.problems)]
    warn = (
        t("train.too_big_text")
        if forecast.verdict == "too big"
        else t("train.tight_text")
        if forecast.verdict == "tight"
        else ""
    )
    return parts.card(
        h("div", h("ul", [h("li", text) for text in problems]), class_="hint bad", role="alert") if problems else None,
        h("div", warn, class_="hint warn") if warn and not problems else None,
        [h("div", sentence(t, note.text), class_="hint") for note in forecast.notes if note.replaced is not None],
        panel(context, forecast) if not problems else None,
        h("style", _marks(forecast)) if forecast.problems else None,
        title=t("train.expect"),
    )


def _marks(forecast: Forecast) -> Html:
    """A red border around the fields that the problems name."""
    named = [
        path
        for path in forms.fields()
        if any(f"'{path.rpartition('.')[2]}'" in text or f"'{path}'" in text for text in forecast.problems)
    ]
    chosen = ",".join(f"#{element_id(path)} input,#{element_id(path)} textarea" for path in named) or ".none"
    return Html(chosen + "{border-color:var(--ftl-bad)!important;box-shadow:0 0 0 1px var(--ftl-bad)!important}")


_opened: dict[tuple[str, float], ModelFolder] = {}


class Outlook:
    """Forecasts for one server; slow lookups are cached."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._parameters: dict[str, int] = {}
        self._known: dict[str, Forecast] = {}
        self._before: tuple[float, list[facts.RunFacts]] = (0.0, [])

    def of(self, tables: Mapping[str, Any], data: DataFacts | None) -> Forecast:
        """The forecast of a run's tables, cached until a run or a model is added or removed."""
        home = self._context.home
        stamp = [home.runs.stat().st_mtime, home.models.stat().st_mtime, id(self._context.machine.facts)]
        key = json.dumps([{k: v for k, v in tables.items() if k != "name"}, data and vars(data), stamp], sort_keys=True)
        if key not in self._known:
            while len(self._known) > REMEMBERED:
                self._known.pop(next(iter(self._known)), None)
            self._known[key] = self._of(tables, data)
        return self._known[key]

    def _of(self, tables: Mapping[str, Any], data: DataFacts | None) -> Forecast:
        machine = self._context.machine
        backend, requested = str(tables.get("backend") or "auto"), tables.get("device")
        device = machine.device(backend, str(requested) if requested else None)
        return forecast(tables, device, self._model, data, self._pace(), machine.backend)

    def _model(self, spec: RunSpec) -> ModelFolder | None:
        if spec.model.id == DEFAULT_MODEL and DEFAULT_MODEL not in installed(self._context.home.models):
            return None  # it will be downloaded
        model = opened(spec.model.id, self._context)
        if spec.model.context is not None:
            return model.stretched(spec.model.context / model.context_length)
        return model.stretched(spec.model.rope_factor)

    def _pace(self) -> Any:
        before = [found for done in self._recent() if (found := work_of_run(done, self._parameters)) is not None]
        flops = self._context.machine.facts.get("flops")

        def expect(work: Work, fast_bf16: bool) -> Pace:
            device = self._context.machine.device(work.backend)
            on_processor = device is None or device.kind == "cpu"
            return pace(work, before, float(flops) if flops and on_processor else None, fast_bf16)

        return expect

    def _recent(self) -> list[facts.RunFacts]:
        when, known = self._before
        if time.monotonic() - when < RECENT_SECONDS:
            return known
        found = [facts.facts_of(run) for run in runs.every(self._context.home)[:RECENT]]
        for done in found:
            name = done.model or ""
            if name and name not in self._parameters:
                try:
                    self._parameters[name] = opened(name, self._context).parameters
                except ModelError:
                    continue
        usable = [done for done in found if done.model in self._parameters]
        self._before = (time.monotonic(), usable)
        return usable


def opened(name: str, context: Context) -> ModelFolder:
    """A model on this machine; its headers are read once. Raises ModelError."""
    path = context.home.models / name
    place = path if path.is_dir() else located(name)
    stamp = place.stat().st_mtime if place.exists() else 0.0
    if (name, stamp) not in _opened:
        _opened[name, stamp] = find(name, context.home)
    return _opened[name, stamp]


def verdict_badge(context: Context, forecast: Forecast) -> Html | None:
    """A badge: fits, tight or too big."""
    if not forecast.verdict:
        return None
    kind = {"fits": "good", "tight": "warn", "too big": "bad"}[forecast.verdict]
    return parts.badge(context.t(f"train.verdict_{forecast.verdict.replace(' ', '_')}"), kind)


def memory_text(context: Context, forecast: Forecast) -> str:
    """Memory needed of memory available."""
    if forecast.memory is None:
        return context.t("train.memory_unknown")
    there = forecast.device.memory_bytes if forecast.device else None
    return context.t("train.memory_of", needed=context.f.size(forecast.memory.total), there=context.f.size(there))


def time_text(context: Context, forecast: Forecast) -> str:
    """The estimated time, and what the estimate is based on."""
    if forecast.seconds is None or forecast.pace is None:
        return context.t("train.time_unknown")
    span = context.f.about(forecast.seconds)
    return context.t(f"train.time_{forecast.pace.basis}", span=span, run=forecast.pace.run)


def panel(context: Context, forecast: Forecast) -> Html:
    """The forecast beside the start button."""
    t, f = context.t, context.f
    memory = forecast.memory
    shares = []
    if memory is not None and forecast.device is not None:
        for name in ("weights", "trainable", "optimizer", "activations", "runtime"):
            share = getattr(memory, name) / max(memory.total, forecast.device.memory_bytes)
            shares.append(
                h("i", class_=f"part {name}", style=f"width:{100 * share:.2f}%", title=t(f"train.part_{name}"))
            )
    pairs = [
        (t("train.memory"), [memory_text(context, forecast), " ", verdict_badge(context, forecast) or ""]),
        (t("train.time"), time_text(context, forecast)),
        (t("train.steps"), f.number(forecast.steps) if forecast.steps else None),
        (t("train.trainable"), f.parameters(forecast.trainable) if forecast.trainable is not None else None),
    ]
    return h("div", parts.facts(pairs), h("div", shares, class_="memory-bar", aria_hidden="true") if shares else None)
