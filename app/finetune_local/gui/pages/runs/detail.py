"""The details of one run: settings, figures, curves, and actions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.widgets import controls, lists, parts, runview
from finetune_local.gui.widgets.html import Child, Html, h, join
from finetune_local.gui.widgets.measures import objective_title
from finetune_local.gui.widgets.runlist import file_names, method_name
from finetune_local.runtime.status import Status
from finetune_local.spec.config_file import as_toml, flattened
from finetune_local.system.errors import FinetuneError
from finetune_local.system.messages import message_of
from finetune_local.training.run_folder.facts import RunFacts
from finetune_local.training.run_folder.runs import Run
from finetune_local.training.run_folder.settings import settings_of, tables_of

if TYPE_CHECKING:
    from finetune_local.gui.i18n.strings import Strings
    from finetune_local.gui.shell.context import Context
    from finetune_local.training.run_folder.watch import Watch


def drawn(context: Context, run: Run, row: RunFacts, editing: bool) -> Html:
    """The whole of it."""
    t = context.t
    back = parts.button(join(["‹ ", t("runs.back")]), "runs.back", kind="quiet small back")
    name = _rename_form(t, run) if editing else None
    if row.damaged:
        problem = h("div", h("p", sentence(t, row.problem or "")), class_="hint bad", role="alert")
        return h("div", back, _head(context, run, row), name, problem, class_="stack")
    watched = context.watch(run.folder).refresh()
    chart = parts.card(runview.loss_chart(context, watched), title=t("train.loss"))
    below = h("div", _facts(context, watched, row), _settings(context, run), class_="columns")
    parts_ = (
        name,
        _problem(t, row) or None,
        _figures(context, row, watched),
        chart,
        runview.metric_charts(context, watched),
        below,
    )
    return h("div", back, _head(context, run, row), *parts_, class_="stack")


def _head(context: Context, run: Run, row: RunFacts) -> Html:
    t, status = context.t, row.status
    buttons: list[Html] = []
    if not row.damaged:
        label = t("runs.watch") if status == Status.RUNNING else t("runs.show")
        buttons.append(parts.button(label, "runs.show", run.name, kind="primary"))
        if status in runview.RESUMABLE:
            buttons.append(parts.button(t("runs.resume"), "runs.resume", run.name))
        if run.adapter.exists():
            buttons.append(parts.button(t("runs.chat"), "runs.chat", run.name))
        buttons.append(parts.button(t("runs.again"), "runs.again", run.name))
    if status != Status.RUNNING:
        buttons.append(parts.button(t("common.rename"), "runs.edit", run.name, kind="quiet"))
        buttons.append(parts.button(t("common.delete"), "runs.remove", run.name, kind="quiet danger"))
    return h(
        "header",
        h(
            "div",
            h(
                "div",
                h("h1", run.name, tabindex="-1", data_top=f"run {run.name}"),
                runview.status_of(t, row),
                class_="row",
            ),
            h("p", join([method_name(t, row.method), row.model, file_names(row.files) or None], " · ")),
        ),
        h("div", *buttons, class_="row"),
        class_="page-header",
    )


def _rename_form(t: Strings, run: Run) -> Html:
    cancel = parts.button(t("common.cancel"), "runs.edit_end", kind="small")
    box = lists.field(t("runs.new_name"), "name", run.name, hint=t("runs.rename_help"), autofocus=True, maxlength="100")
    return parts.card(lists.form("runs.rename", run.name, box, t("common.rename"), cancel))


def _problem(t: Strings, row: RunFacts) -> Html:
    text = row.problem
    if not text:
        return Html("")
    return h("div", sentence(t, text), class_="hint bad", role="alert")


def _figures(context: Context, row: RunFacts, watched: Watch) -> Html:
    t, f = context.t, context.f
    first, best = row.first_loss, row.best_validation_loss
    return parts.figures(
        parts.figure(
            t("runs.loss"),
            f.loss(row.last_loss),
            t("runs.from_first", loss=f.loss(first)) if first is not None else None,
        ),
        parts.figure(
            t("runs.validation_loss"),
            f.loss(row.validation_loss),
            t("runs.best", loss=f.loss(best)) if best is not None else None,
        ),
        *runview.metric_figures(context, watched),
        parts.figure(t("runs.steps"), f.number(row.steps_done)),
        parts.figure(t("runs.tokens"), f.number(row.trained_tokens)),
        parts.figure(t("runs.duration"), f.span(row.seconds)),
        parts.figure(t("runs.memory"), f.size(row.peak_memory_bytes)),
    )


def _facts(context: Context, watched: Watch, row: RunFacts) -> Html:
    t, f, run, objective = context.t, context.f, watched.run, watched.objective
    origin = run.made_from
    where = [place for place in (row.backend, row.device, row.precision) if place]
    pairs: list[tuple[Child, Child]] = [
        (t("runs.base"), row.model),
        (t("runs.method"), method_name(t, row.method)),
        (t("settings.objective.key"), objective_title(t, objective) if objective is not None else None),
        (t("runs.parameters"), f.parameters(int(count)) if (count := row.trainable_parameters) else None),
        (t("runs.data"), [h("div", name) for name in row.files]),
        (t("runs.computed_on"), " · ".join(where)),
        (t("runs.started_at"), f.moment(row.changed_time)),
        (t("runs.made_from"), h("button", origin, type="button", class_="link", data_do="runs.open", data_value=origin) if origin else None),
        (t("runs.folder"), [h("code", str(run.folder)), " ", h("button", t("common.copy"), type="button", class_="button small quiet", data_copy=str(run.folder))]),
    ]  # fmt: skip
    return parts.card(parts.facts(pairs), title=t("runs.about"))


def _settings(context: Context, run: Run) -> Html:
    t = context.t
    try:
        tables, explicit = tables_of(run), settings_of(run)
    except FinetuneError as error:
        return parts.card(h("p", sentence(t, message_of(error)), class_="hint bad"), title=t("runs.settings"))
    own = {**explicit.rest, **{f"data.{key}": value for key, value in explicit.data.items() if key != "files"}}
    given = [(controls.label_of(t, path), controls.value_text(t, value)) for path, value in own.items()]
    every = [
        (controls.label_of(t, path), controls.value_text(t, value))
        for path, value in flattened(tables).items()
        if value not in (None, [], "") and path not in ("name", "method.key", "model.id", "data.files")
    ]
    copies = [
        h("button", label, type="button", class_="button small", data_copy=text)
        for label, text in (
            (t("runs.copy_toml"), as_toml(tables)),
            (t("runs.copy_json"), json.dumps(tables, indent=2, ensure_ascii=False)),
        )
    ]
    return parts.card(
        parts.facts(given) if given else h("p", t("runs.all_automatic"), class_="soft"),
        h(
            "details",
            h("summary", t("runs.all_settings")),
            parts.facts(every),
            class_="all-settings",
            data_keep="all-settings",
        ),
        h("div", copies, class_="row"),
        title=t("runs.set_by_you"),
    )
