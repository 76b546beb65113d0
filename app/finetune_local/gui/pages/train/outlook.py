"""The forecast of a run with the window's model and data on this machine, and its words."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.models.folder import ModelFolder
from finetune_local.models.install import installed
from finetune_local.models.resolve import find
from finetune_local.spec.run import DEFAULT_MODEL, RunSpec
from finetune_local.system.errors import ModelError
from finetune_local.system.paths import located
from finetune_local.training.run_folder import facts, runs
from finetune_local.training.run_folder.forecast import DataFacts, Forecast, Pace, Work, forecast, pace, work_of_run

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context

RECENT = 30
"""How many of the newest runs are used to estimate speed."""

REMEMBERED = 400
"""Forecasts that are cached."""

RECENT_SECONDS = 10.0
"""Seconds for which facts of earlier runs are cached."""

_opened: dict[tuple[str, float], ModelFolder] = {}


class Outlook:
    """Forecasts of one context; what is slow to look up is cached."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._parameters: dict[str, int] = {}
        self._known: dict[str, Forecast] = {}
        self._before: tuple[float, list[dict[str, Any]]] = (0.0, [])

    def of(self, tables: Mapping[str, Any], data: DataFacts | None) -> Forecast:
        """The forecast of a run's tables, cached until a run or a model is added or removed."""
        home = self._context.home
        stamp = [home.runs.stat().st_mtime, home.models.stat().st_mtime, id(self._context.machine.facts)]
        asked = json.dumps(
            [{k: v for k, v in tables.items() if k != "name"}, data and vars(data), stamp], sort_keys=True
        )
        if asked not in self._known:
            while len(self._known) > REMEMBERED:
                self._known.pop(next(iter(self._known)), None)
            self._known[asked] = self._of(tables, data)
        return self._known[asked]

    def _of(self, tables: Mapping[str, Any], data: DataFacts | None) -> Forecast:
        machine = self._context.machine
        backend, wanted = str(tables.get("backend") or "auto"), tables.get("device")
        device = machine.device(backend, str(wanted) if wanted else None)
        return forecast(tables, device, self._model, data, self._pace(), machine.backend)

    def _model(self, spec: RunSpec) -> ModelFolder | None:
        if spec.model.id == DEFAULT_MODEL and DEFAULT_MODEL not in installed(self._context.home.models):
            return None  # it will be downloaded
        model = opened(spec.model.id, self._context)
        if spec.model.context is not None:
            return model.stretched(spec.model.context / model.context_length)
        return model.stretched(spec.model.rope_factor)

    def _pace(self) -> Any:
        before = [found for told in self._recent() if (found := work_of_run(told, self._parameters)) is not None]
        flops = self._context.machine.facts.get("flops")

        def expect(work: Work, fast_bf16: bool) -> Pace:
            device = self._context.machine.device(work.backend)
            on_processor = device is None or device.kind == "cpu"
            return pace(work, before, float(flops) if flops and on_processor else None, fast_bf16)

        return expect

    def _recent(self) -> list[dict[str, Any]]:
        when, known = self._before
        if time.monotonic() - when < RECENT_SECONDS:
            return known
        found = [facts.facts_of(run) for run in runs.every(self._context.home)[:RECENT]]
        for told in found:
            name = str(told.get("model", ""))
            if name and name not in self._parameters:
                try:
                    self._parameters[name] = opened(name, self._context).parameters
                except ModelError:
                    continue
        usable = [told for told in found if told.get("model") in self._parameters]
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


def verdict_badge(context: Context, told: Forecast) -> Html | None:
    """A badge: fits, tight or too big."""
    if not told.verdict:
        return None
    kind = {"fits": "good", "tight": "warn", "too big": "bad"}[told.verdict]
    return parts.badge(context.t(f"train.verdict_{told.verdict.replace(' ', '_')}"), kind)


def memory_text(context: Context, told: Forecast) -> str:
    """Memory needed of memory available."""
    if told.memory is None:
        return context.t("train.memory_unknown")
    there = told.device.memory_bytes if told.device else None
    return context.t("train.memory_of", needed=context.f.size(told.memory.total), there=context.f.size(there))


def time_text(context: Context, told: Forecast) -> str:
    """The estimated time, and what the estimate is based on."""
    if told.seconds is None or told.pace is None:
        return context.t("train.time_unknown")
    span = context.f.about(told.seconds)
    return context.t(f"train.time_{told.pace.basis}", span=span, run=told.pace.run)


def panel(context: Context, told: Forecast) -> Html:
    """The forecast beside the start button."""
    t, f = context.t, context.f
    memory = told.memory
    shares = []
    if memory is not None and told.device is not None:
        for name in ("weights", "trainable", "optimizer", "activations", "runtime"):
            share = getattr(memory, name) / max(memory.total, told.device.memory_bytes)
            shares.append(
                h("i", class_=f"part {name}", style=f"width:{100 * share:.2f}%", title=t(f"train.part_{name}"))
            )
    pairs = [
        (t("train.memory"), [memory_text(context, told), " ", verdict_badge(context, told) or ""]),
        (t("train.time"), time_text(context, told)),
        (t("train.steps"), f.number(told.steps) if told.steps else None),
        (t("train.trainable"), f.parameters(told.trainable) if told.trainable is not None else None),
    ]
    return h("div", parts.facts(pairs), h("div", shares, class_="memory-bar", aria_hidden="true") if shares else None)
