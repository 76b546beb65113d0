"""How pages show a run: its status, figures, charts, sampled answers and log."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.chart import Line, chart
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.gui.widgets.measures import charted, measures
from finetune_local.runtime.status import ProcessState, Status
from finetune_local.training import events
from finetune_local.training.run_folder.facts import RunFacts

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.training.run_folder.watch import Watch

_KINDS: Mapping[str, str] = {
    Status.RUNNING: "live",
    Status.FINISHED: "good",
    Status.PAUSED: "warn",
    Status.FAILED: "bad",
}
RESUMABLE = (Status.PAUSED, Status.FAILED, Status.QUEUED)
"""Statuses from which a run can be resumed."""

LOG_LINES = 40


def status_badge(t: Strings, status: str) -> Html:
    """A run's status as a badge."""
    return parts.badge(t(f"runs.status_{status}"), _KINDS.get(status, ""))


def status_of(t: Strings, row: RunFacts) -> Html:
    """The status of a run in a list, and beside it whether its run.json is damaged."""
    damaged = parts.badge(t("runs.damaged"), "bad") if row.damaged else None
    return join([status_badge(t, row.status), damaged], " ")


def progress(context: Context, run: Watch, status: Status) -> Html:
    """The progress bar: what is being prepared, or the completed steps and the time left."""
    t, f = context.t, context.f
    if status is Status.RUNNING and run.phase[0] and run.end is None:
        return parts.progress(t, f, sentence(t, run.phase[0]), run.phase[1])
    done = run.step / run.steps if run.steps else (1.0 if status is Status.FINISHED else 0.0)
    text = t("train.step_of", step=f.number(run.step), steps=f.number(run.steps))
    return parts.progress(t, f, text, done, run.seconds_left if status is Status.RUNNING else None)


def figures(context: Context, run: Watch, status: Status) -> Html:
    """The numbers of the newest step."""
    t, f = context.t, context.f
    step = run.newest
    smooth = run.loss.smoothed(run.steps)
    first = run.validation[0][1] if run.validation else None
    newest = run.validation[-1][1] if run.validation else None
    change = None
    if first and newest is not None and len(run.validation) > 1:
        change = t("train.from_base", loss=f.loss(first))
    left = f.about(run.seconds_left) if status is Status.RUNNING and run.seconds_left is not None else None
    seconds = run.summary.get("seconds")
    return parts.figures(
        parts.figure(
            t("train.loss"),
            f.loss(step.loss if step else None),
            t("train.smoothed", loss=f.loss(smooth[-1][1])) if smooth else None,
        ),
        parts.figure(t("train.validation_loss"), f.loss(newest), change),
        *metric_figures(context, run),
        parts.figure(t("train.learning_rate"), f.rate(step.learning_rate if step else None)),
        parts.figure(
            t("train.speed"), f.number(step.tokens_per_second if step else None), t("train.tokens_per_second")
        ),
        parts.figure(
            t("train.memory_peak"), f.size(step.peak_memory_bytes if step else run.summary.get("peak_memory_bytes"))
        ),
        parts.figure(t("train.time_left"), left)
        if left
        else parts.figure(t("train.took"), f.span(seconds))
        if seconds
        else Html(""),
    )


def loss_chart(context: Context, run: Watch) -> Html:
    """Loss, smoothed loss and validation loss by step."""
    t = context.t
    spans = run.loss.spans
    lines = [
        Line(
            t("train.loss"),
            [(s.step, s.mean) for s in spans],
            1,
            "thin",
            band=[(s.step, s.low, s.high) for s in spans] if any(s.count > 1 for s in spans) else (),
        ),
        Line(t("train.loss_smoothed"), run.loss.smoothed(run.steps), 1),
    ]
    if run.validation:
        points = [(step, loss) for step, loss, _ in run.validation]
        lines += [
            Line(t("train.validation_loss"), points, 2),
            Line(t("train.validation_loss"), points, 2, "dots", in_legend=False),
        ]
    return chart(
        lines,
        context.f,
        label=t("train.loss"),
        x_name=t("train.step"),
        x_end=run.steps or None,
        digits=3,
        waiting=t("train.waiting"),
    )


def metric_figures(context: Context, run: Watch) -> list[Html]:
    """The newest values of the metrics that the run's objective reports, with the base model's."""
    t, f, shown = context.t, context.f, list[Html]()
    for measure in measures(t, [run.objective]):
        if points := run.metric(measure.key):
            (step, first), (_, newest) = points[0], points[-1]
            base = t("train.from_base", loss=measure.text(f, first)) if step == 0 and len(points) > 1 else None
            shown.append(parts.figure(measure.title, measure.text(f, newest), base))
    return shown


def metric_charts(context: Context, run: Watch) -> Html:
    """The metrics that the run's objective reports, by step; empty if it reports the loss only."""
    t, f, drawn = context.t, context.f, list[Html]()
    for together in charted(measures(t, [run.objective])):
        lines: list[Line] = []
        for colour, measure in enumerate(together, 2):
            points = run.metric(measure.key)
            lines += [
                Line(measure.title, points, colour, in_legend=len(together) > 1),
                Line(measure.title, points, colour, "dots", in_legend=False),
            ]
        title = " · ".join(measure.title for measure in together)
        written = partial(together[0].text, f)
        plot = chart(
            lines, f, label=title, x_name=t("train.step"), x_end=run.steps or None, small=True, y_text=written,
            waiting=t("train.waiting_validation"),
        )  # fmt: skip
        drawn.append(h("div", h("h3", title), plot))
    return (
        parts.card(h("div", drawn, class_="columns thirds"), title=t("train.validation_metrics")) if drawn else Html("")
    )


def small_charts(context: Context, run: Watch) -> Html:
    """Learning rate, speed and the gradient's norm."""
    t, f = context.t, context.f
    shown = []
    for key, curve, write in (
        ("learning_rate", run.rate, f.rate),
        ("speed", run.speed, f.number),
        ("gradient_norm", run.gradient, lambda value: f.number(value, 2)),
    ):
        points = [(span.step, span.mean) for span in curve.spans]
        drawn = chart(
            [Line(t(f"train.{key}"), points, 3, in_legend=False)],
            f,
            label=t(f"train.{key}"),
            x_name=t("train.step"),
            x_end=run.steps or None,
            small=True,
            y_text=write,
        )
        shown.append(h("div", h("h3", t(f"train.{key}")), drawn))
    return h(
        "details",
        h("summary", t("train.more_charts")),
        h("div", shown, class_="columns thirds"),
        class_="card fold",
        data_keep="more-charts",
    )


def answers(context: Context, run: Watch) -> Html:
    """Sampled answers: the expected one, the base model's and the newest, with those in between folded away."""
    t, f = context.t, context.f
    if not run.answers:
        return Html("")
    shown = []
    for number, sample in enumerate(run.answers.values()):
        first, newest = sample.given[0], sample.given[-1]
        between = [
            h("div", h("small", t("train.after_step", step=f.number(step))), h("div", answer, class_="text"))
            for step, answer in reversed(sample.given[1:-1])
        ]
        columns = [(t("train.expected"), sample.reference, "")]
        columns.append(
            (t("train.before") if first[0] == 0 else t("train.after_step", step=f.number(first[0])), first[1], "")
        )
        if len(sample.given) > 1:
            columns.append((t("train.after_step", step=f.number(newest[0])), newest[1], "newest"))
        shown.append(
            h(
                "article",
                h("p", sample.prompt, class_="asked text"),
                h(
                    "div",
                    [
                        h("div", h("small", title), h("div", text, class_="text"), class_=kind)
                        for title, text, kind in columns
                    ],
                    class_="columns thirds",
                ),
                h("details", h("summary", t("train.between", n=len(between))), between, data_keep=f"between-{number}")
                if between
                else None,
                class_="sample",
            )
        )
    return parts.card(*shown, title=t("train.samples"))


def log(context: Context, run: Watch) -> Html:
    """The run's notes, and the last lines that its worker printed."""
    t = context.t
    notes = [h("li", sentence(t, note)) for note in run.notes]
    printed = run.run.log_tail(LOG_LINES)
    return h(
        "details",
        h("summary", t("train.log")),
        h("ul", notes) if notes else h("p", t("train.log_empty"), class_="soft"),
        h("pre", "\n".join(printed), tabindex="0", data_scroll="log", data_end="") if printed else None,
        class_="card fold",
        data_keep="log",
    )


def ending(context: Context, run: Watch, state: ProcessState) -> Html:
    """Why the run ended, and what to do next."""
    t, end, status = context.t, run.end, state.status
    if status is Status.FINISHED and isinstance(end, events.Finished):
        return h("div", t("train.ended_well", reason=sentence(t, end.reason)), class_="hint good")
    if status is Status.PAUSED:
        return h("div", t("train.paused_text", step=context.f.number(run.step)), class_="hint warn")
    words = (
        run.run.log_tail() if state.killed or status is Status.QUEUED else []
    )  # the log is read for these statuses only
    if state.killed or words:
        return h(
            "div",
            h("p", t("train.interrupted_text")),
            h("pre", "\n".join(words)) if words else None,
            class_="hint warn",
            role="alert",
        )
    if status is Status.FAILED and isinstance(end, events.Failed):
        return h(
            "div",
            h("strong", t.get(f"errors.{end.error}") or t("errors.defect")),
            h("p", sentence(t, end.message)),
            h("details", h("summary", t("errors.show_details")), h("pre", end.traceback)) if end.traceback else None,
            class_="hint bad",
            role="alert",
        )
    return Html("")


def curves(context: Context, run: Watch) -> Html:
    """All charts."""
    loss = parts.card(loss_chart(context, run), title=context.t("train.loss"))
    return join([loss, metric_charts(context, run), small_charts(context, run)])
