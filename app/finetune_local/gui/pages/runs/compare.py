"""Comparison of runs: their curves in one chart, their figures, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.pages.runs.state import Look, Shown
from finetune_local.gui.widgets import controls, lists, parts
from finetune_local.gui.widgets.chart import Line, chart
from finetune_local.gui.widgets.html import Child, Html, h, join
from finetune_local.gui.widgets.measures import measures
from finetune_local.gui.widgets.runview import status_badge
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import message_of
from finetune_local.training.run_folder import watch
from finetune_local.training.run_folder.facts import RunFacts
from finetune_local.training.run_folder.runs import Run
from finetune_local.training.run_folder.settings import differences

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.training.run_folder.watch import Watch

SHOWN = get_args(Shown)


def changed(look: Look, name: str, value: str) -> Look:
    """The look with another choice; unchanged if the value is unknown."""
    chosen: dict[str, Any] = {**asdict(look), name: value}
    valid = chosen["shown"] in SHOWN and chosen["axis"] in watch.AXES and chosen["smoothing"] in watch.SMOOTHINGS
    return Look(**chosen) if valid else look


def drawn(context: Context, found: Sequence[tuple[Run, RunFacts]], look: Look) -> Html:
    """The whole of it."""
    t = context.t
    back = parts.button(join(["‹ ", t("runs.back")]), "runs.back", kind="quiet small back")
    title = h("h1", t("runs.comparison"), tabindex="-1", data_top="compare")
    head = h("header", h("div", title, h("p", t("runs.comparison_text"))), class_="page-header")
    watched = [context.watch(run.folder).refresh() for run, _ in found]
    cards = (
        _curves(context, watched, look),
        _metric_charts(context, watched, look),
        _figures(context, found, watched),
        _differences(context, found),
    )
    return h("div", back, head, *cards, class_="stack")


def _curves(context: Context, found: Sequence[Watch], look: Look) -> Html:
    t, f = context.t, context.f
    lines: list[Line] = []
    for number_, watched in enumerate(found, 1):
        run = watched.run
        if look.shown != "validation":
            lines.append(Line(run.name, watch.training_loss(watched, look.axis, look.smoothing), number_))
        if look.shown != "training" and (points := watch.validation_loss(watched, look.axis)):
            if look.shown == "validation":
                lines.append(Line(run.name, points, number_))
            lines.append(Line(run.name, points, number_, "dots", in_legend=False))
    choices = [
        lists.segmented("runs.shown", [(key, t(f"runs.shown_{key}")) for key in SHOWN], look.shown, t("runs.shown")),
        lists.segmented("runs.axis", [(key, t(f"runs.axis_{key}")) for key in watch.AXES], look.axis, t("runs.axis")),
        lists.segmented(
            "runs.smoothing",
            [(key, t(f"runs.smoothing_{key}")) for key in watch.SMOOTHINGS],
            look.smoothing,
            t("runs.smoothing"),
        ),
    ]
    plot = chart(
        lines, f, label=t("runs.comparison"), x_name=t(f"runs.axis_{look.axis}"), digits=3, waiting=t("runs.no_curve")
    )
    hint = h("small", t("runs.dots_hint")) if look.shown == "both" else None
    return parts.card(h("div", choices, class_="row tools"), plot, hint)


def _metric_charts(context: Context, found: Sequence[Watch], look: Look) -> Html:
    """A chart for each metric that an objective of the runs declares; empty if they report only the loss."""
    t, f, drawn = context.t, context.f, list[Html]()
    for measure in measures(t, [watched.objective for watched in found]):
        lines: list[Line] = []
        for colour, watched in enumerate(found, 1):
            if points := watch.metric(watched, measure.key, look.axis):
                name = watched.run.name
                lines += [Line(name, points, colour), Line(name, points, colour, "dots", in_legend=False)]
        if lines:
            axis, written = t(f"runs.axis_{look.axis}"), partial(measure.text, f)
            plot = chart(lines, f, label=measure.title, x_name=axis, small=True, y_text=written)
            drawn.append(h("div", h("h3", measure.title), plot))
    return (
        parts.card(h("div", drawn, class_="columns thirds"), title=t("train.validation_metrics")) if drawn else Html("")
    )


def _figures(context: Context, found: Sequence[tuple[Run, RunFacts]], watches: Sequence[Watch]) -> Html:
    t, f = context.t, context.f
    reported = measures(t, [watched.objective for watched in watches])
    numbers = (
        t("runs.loss"),
        t("runs.validation_loss"),
        t("runs.best_validation"),
        *(measure.title for measure in reported),
        t("runs.steps"),
        t("runs.tokens"),
        t("runs.duration"),
        t("runs.memory"),
    )
    headings: list[Child] = [t("runs.run"), t("runs.status"), *((title, "number") for title in numbers)]
    rows = [
        [
            h("span", h("i", class_=f"swatch c{colour}"), run.name, class_="legend-name"),
            status_badge(t, row.status),
            (f.loss(row.last_loss), "number"),
            (f.loss(row.validation_loss), "number"),
            (f.loss(row.best_validation_loss), "number"),
            *((measure.text(f, _newest(watched, measure.key)), "number") for measure in reported),
            (f.number(row.steps_done), "number"),
            (f.number(row.trained_tokens), "number"),
            (f.span(row.seconds), "number"),
            (f.size(row.peak_memory_bytes), "number"),
        ]
        for colour, ((run, row), watched) in enumerate(zip(found, watches, strict=True), 1)
    ]
    return parts.card(parts.table(headings, rows, caption=t("runs.figures")), title=t("runs.figures"))


def _newest(watched: Watch, key: str) -> float | None:
    points = watched.metric(key)
    return points[-1][1] if points else None


def _differences(context: Context, found: Sequence[tuple[Run, RunFacts]]) -> Html:
    t = context.t
    try:
        different = differences([run for run, _ in found])
    except SpecError as error:
        return parts.card(h("p", sentence(t, message_of(error)), class_="hint bad"), title=t("runs.differences"))
    if not different:
        return parts.card(h("p", t("runs.no_differences"), class_="soft"), title=t("runs.differences"))
    headings = [t("runs.setting"), *(run.name for run, _ in found)]
    rows = [
        [controls.label_of(t, row.path), *(controls.value_text(t, value) for value in row.values)] for row in different
    ]
    return parts.card(parts.table(headings, rows, caption=t("runs.differences")), title=t("runs.differences"))
