"""The details of one adapter: settings, the tree of adapters it was trained from, scores, and actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_local.adapters import library, manage
from finetune_local.adapters.extraction.job_extract import KIND as EXTRACT
from finetune_local.evaluation.metrics import Metric, metrics
from finetune_local.evaluation.store import CONDITIONS
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.shell.lookups import Answer
from finetune_local.gui.widgets import controls, lists, parts
from finetune_local.gui.widgets.html import Child, Html, h, join
from finetune_local.gui.widgets.lists import Row
from finetune_local.gui.widgets.measures import metric_title, value_text
from finetune_local.gui.widgets.runlist import file_names, method_name
from finetune_local.runtime import jobs
from finetune_local.runtime.job import Job
from finetune_local.runtime.status import Status
from finetune_local.system.errors import FinetuneError
from finetune_local.system.messages import message_of

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context


from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context


def drawn(context: Context, row: Row, rows: Sequence[Row], editing: str, companions: Answer) -> Html:
    """The adapter's page. `editing`: "name" or "note" while that is being edited. `brings`: what comes with its weights."""
    t = context.t
    back = parts.button(join(["‹ ", t("adapters.back")]), "adapters.back", kind="quiet small back")
    name = _rename_form(context, row) if editing == "name" else None
    if row["problem"]:
        problem = h("div", sentence(t, row["problem"]), class_="hint bad", role="alert")
        return h("div", back, _head(context, row), name, problem, class_="stack")
    extract = _extract(context, row) if row["whole"] else None
    left = h(
        "div",
        _note(context, row, editing == "note"),
        _scores(context, row),
        _facts(context, row, companions),
        class_="stack",
    )
    origin = parts.card(tree(context, row, rows), title=t("adapters.origin"))
    right = h("div", origin, extract, _settings(context, row), class_="stack")
    return h("div", back, _head(context, row), name, h("div", left, right, class_="columns uneven"), class_="stack")


def extraction_of(context: Context, name: str) -> Job | None:
    """The newest extraction job of an adapter."""
    return next((one for one in jobs.every(context.home, EXTRACT) if one.arguments.get("adapter") == name), None)


def _head(context: Context, row: Row) -> Html:
    t, name = context.t, row["name"]
    buttons: list[Html] = []
    if not row["problem"]:
        buttons = [
            parts.button(t("adapters.chat_with_it"), "adapters.chat", name, kind="primary"),
            parts.button(t("adapters.evaluate"), "adapters.evaluate", name),
            parts.button(t("adapters.export"), "adapters.export", name),
        ]
    buttons.append(parts.button(t("common.rename"), "adapters.edit", "name", kind="quiet"))
    buttons.append(parts.button(t("common.delete"), "adapters.remove", name, kind="quiet danger"))
    line = [
        method_name(t, row["method"]) if row["method"] else None,
        row["base"],
        file_names(row.get("files", ())) or None,
    ]
    return h(
        "header",
        h("div", h("h1", name, tabindex="-1", data_top=f"adapter {name}"), h("p", join(line, " · "))),
        h("div", *buttons, class_="row"),
        class_="page-header",
    )


def _rename_form(context: Context, row: Row) -> Html:
    t = context.t
    cancel = parts.button(t("common.cancel"), "adapters.edit_end", kind="small")
    hint = t("adapters.rename_help") if row["origin"] == "run" else None
    box = lists.field(t("adapters.new_name"), "name", row["name"], hint=hint, autofocus=True, maxlength="100")
    return parts.card(lists.form("adapters.rename", row["name"], box, t("common.rename"), cancel))


def _note(context: Context, row: Row, editing: bool) -> Html:
    t = context.t
    if editing:
        cancel = parts.button(t("common.cancel"), "adapters.edit_end", kind="small")
        box = lists.field(t("adapters.note"), "note", row["note"], lines=4, autofocus=True)
        return parts.card(lists.form("adapters.note", row["name"], box, t("adapters.save_note"), cancel))
    text = h("p", row["note"], class_="text") if row["note"] else h("p", t("adapters.no_note"), class_="soft")
    label = t("adapters.edit_note") if row["note"] else t("adapters.add_note")
    return parts.card(text, parts.button(label, "adapters.edit", "note", kind="small"), title=t("adapters.note"))


def _scores(context: Context, row: Row) -> Html:
    t, f, scores = context.t, context.f, row["scores"]
    if not scores:
        text = h("p", t("adapters.no_scores"), class_="soft")
        press = parts.button(t("adapters.evaluate"), "adapters.evaluate", row["name"], kind="small")
        return parts.card(text, press, title=t("adapters.scores"))
    ran = [name for name in CONDITIONS if scores.get(name)]

    def cell(measured: Mapping[str, Any], metric: Metric) -> Child:
        value = measured.get(metric.key)
        if value is None:
            return "–", "number"
        low, high = (value_text(f, metric, value[end], 2) for end in ("low", "high"))
        mean = value_text(f, metric, value["mean"], 4)
        spread = h("small", f"{low} – {high}", title=t("adapters.interval"))
        return h("div", h("span", mean), spread, class_="two-lines to-end"), "number"

    headings: list[Child] = [t("adapters.metric"), *((t(f"adapters.condition_{name}"), "number") for name in ran)]
    cells = [[metric_title(t, metric), *(cell(scores[name], metric) for name in ran)] for metric in metrics().values()]
    when = t("adapters.evaluated", n=f.number(scores["rows"]), when=f.moment(scores["created_time"]))
    more = parts.button(t("adapters.show_evaluation"), "adapters.evaluation", scores["evaluation"], kind="small")
    return parts.card(
        h("p", sentence(t, scores["verdict"])),
        parts.table(headings, cells, caption=t("adapters.scores")),
        h("div", h("small", when), more, class_="row between under-table"),
        title=t("adapters.scores"),
    )


def _comes_with(context: Context, row: Row, companions: Answer) -> Child:
    t = context.t
    if companions.problem is not None:
        return sentence(t, companions.problem)
    if companions.value is None:
        return t("adapters.comes_with_checking") if row["beside"] else None
    return [h("div", sentence(t, one)) for one in companions.value] or None


def _facts(context: Context, row: Row, companions: Answer) -> Html:
    t, f = context.t, context.f
    folder = row["folder"]
    copy = h("button", t("common.copy"), type="button", class_="button small quiet", data_copy=folder)
    pairs: list[tuple[Child, Child]] = [
        (t("adapters.base"), row["base"]),
        (t("adapters.method"), method_name(t, row["method"])),
        (t("adapters.rank"), f.number(row["rank"]) if isinstance(row["rank"], int) else None),
        (t("adapters.parameters"), f.parameters(row["parameters"])),
        (t("adapters.data"), [h("div", name) for name in row["files"]]),
        (t("adapters.step"), f.number(row["step"]) if isinstance(row["step"], int) else None),
        (t("adapters.comes_with"), _comes_with(context, row, companions)),
        (t("adapters.size"), f.size(row["bytes"])),
        (t("adapters.created"), f.moment(row["created_time"])),
        (t("adapters.folder"), [h("code", folder), " ", copy]),
    ]
    return parts.card(parts.facts(pairs), title=t("adapters.about"))


def _settings(context: Context, row: Row) -> Html:
    t = context.t
    try:
        details = library.details(row["name"], Path(row["folder"]), row["origin"])
    except FinetuneError as error:
        return h("div", sentence(t, message_of(error)), class_="hint bad")
    settings: Mapping[str, Any] = details.settings
    pairs = [
        (controls.label_of(t, f"method.{name}"), controls.value_text(t, value))
        for name, value in settings.items()
        if value not in (None, [], {}, "")
    ]
    modules = (t("adapters.modules"), context.f.number(details.modules))
    mergeable = (t("adapters.mergeable"), t("common.yes" if details.mergeable else "common.no"))
    return parts.card(parts.facts([*pairs, modules, mergeable]), title=t("adapters.settings"))


def _extract(context: Context, row: Row) -> Html:
    t, f, name = context.t, context.f, row["name"]
    working = extraction_of(context, name)
    state = working.state() if working is not None else None
    if working is not None and state is not None and state.status in (Status.RUNNING, Status.QUEUED):
        stop = parts.button(t("common.stop"), "adapters.stop", working.name, kind="small")
        bar = parts.progress(t, f, sentence(t, state.text), state.done, state.seconds_left)
        return parts.card(bar, stop, title=t("adapters.extract"))
    ended: Html | None = None
    if state is not None and state.result:
        made = str(state.result["name"])
        link = h("button", made, type="button", class_="link", data_do="adapters.open", data_value=made)
        kept = t("adapters.extract_done", rank=f.number(state.result["rank"]), kept=f.percent(state.result["kept"], 1))
        notes = [h("p", sentence(t, note)) for note in state.notes]
        ended = h("div", h("p", link, " ", kept), notes, class_="hint good")
    elif state is not None and state.error:
        ended = h("div", sentence(t, state.error.message), class_="hint bad", role="alert")
    fields = [
        h(
            "div",
            lists.field(t("adapters.extract_rank"), "rank", placeholder="16", inputmode="numeric"),
            lists.field(t("adapters.extract_energy"), "energy", placeholder="0.9", inputmode="decimal"),
            class_="two-fields",
        ),
        lists.field(t("adapters.extract_name"), "name", manage.free_name(f"{name}-lora", context.home)),
    ]
    form = lists.form("adapters.extract", name, fields, t("adapters.extract_begin"))
    return parts.card(h("p", t("adapters.extract_text"), class_="soft"), ended, form, title=t("adapters.extract"))


def tree(context: Context, row: Row, rows: Sequence[Row]) -> Html:
    """The lineage of an adapter: base, run, adapter, and what was extracted from it."""
    t = context.t
    by_name = {other["name"]: other for other in rows}
    source = row["extracted_from"]
    parent = by_name.get(str(source.get("adapter") or source.get("run") or "")) if source else None
    inner = _adapter(context, row, [_adapter(context, child, []) for child in _children(row, rows)], here=True)
    if source:
        name = source.get("adapter") or source.get("run") or source.get("folder")
        inner = _adapter(context, parent, [inner]) if parent else _node(t("adapters.node_source"), str(name), [inner])
    made_by = parent or row
    if made_by["origin"] == "run":
        inner = _run(context, made_by, [inner, *_went_on(context, made_by, rows)])
    elif made_by["run"]:
        inner = _node(t("adapters.node_run_elsewhere"), str(made_by["run"]), [inner])
    base = str(row["base"]) if row["base"] else t("adapters.unknown")
    return h("ul", _node(t("adapters.node_base"), base, [inner]), class_="tree")


def _children(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The adapters extracted from an adapter."""
    name = row["name"]
    return [
        other
        for other in rows
        if (source := other["extracted_from"]) and (source.get("adapter") or source.get("run")) == name
    ]


def _went_on(context: Context, row: Row, rows: Sequence[Row]) -> list[Html]:
    """Nodes of the runs based on this run's settings."""
    later = [other["name"] for other in rows if other.get("made_from") == row["name"]]
    return [_node(context.t("adapters.node_later"), _run_link(name)) for name in later]


def _run(context: Context, row: Row, inner: Sequence[Html]) -> Html:
    t = context.t
    below = [
        file_names(row.get("files", ())) or None,
        t("adapters.node_from", run=row["made_from"]) if row["made_from"] else None,
    ]
    return _node(t("adapters.node_run"), _run_link(row["name"]), inner, " · ".join(text for text in below if text))


def _run_link(name: str) -> Html:
    return h("button", name, type="button", class_="link", data_do="adapters.run", data_value=name)


def _adapter(context: Context, row: Row, inner: Sequence[Html], here: bool = False) -> Html:
    t, f, source = context.t, context.f, row["extracted_from"]
    name: Child = row["name"]
    if not here:
        name = h("button", row["name"], type="button", class_="link", data_do="adapters.open", data_value=row["name"])
    extraction = ""
    if isinstance(source.get("error"), float) and source.get("rank"):
        extraction = t(
            "adapters.extract_done", rank=f.number(source["rank"]), kept=f.percent(1 - source["error"] ** 2, 1)
        )
    kind = t("adapters.node_extracted") if source else t("adapters.node_adapter")
    return _node(
        kind, [name, " ", parts.badge(t("adapters.this_adapter"), "live") if here else None], inner, extraction
    )


def _node(kind: str, name: Child, inner: Sequence[Html] = (), below: str = "") -> Html:
    note = h("small", below) if below else None
    return h("li", h("div", h("small", kind, class_="kind"), h("span", name), note), h("ul", inner) if inner else None)
