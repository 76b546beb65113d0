"""Where an adapter comes from and what came of it, as a small tree: base, run, adapter, what was extracted from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Child, Html, h
from finetune_local.gui.widgets.lists import Row
from finetune_local.gui.widgets.runlist import file_names

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context


def tree(context: Context, row: Row, rows: Sequence[Row]) -> Html:
    """The tree of one adapter among all."""
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
    """What was extracted from an adapter."""
    name = row["name"]
    return [
        other
        for other in rows
        if (source := other["extracted_from"]) and (source.get("adapter") or source.get("run")) == name
    ]


def _went_on(context: Context, row: Row, rows: Sequence[Row]) -> list[Html]:
    """Runs that were begun from this one's settings."""
    later = [other["name"] for other in rows if other.get("made_from") == row["name"]]
    return [_node(context.t("adapters.node_later"), _run_link(name)) for name in later]


def _run(context: Context, row: Row, inner: Sequence[Html]) -> Html:
    t = context.t
    below = [file_names(row) or None, t("adapters.node_from", run=row["made_from"]) if row["made_from"] else None]
    return _node(t("adapters.node_run"), _run_link(row["name"]), inner, " · ".join(text for text in below if text))


def _run_link(name: str) -> Html:
    return h("button", name, type="button", class_="link", data_do="adapters.run", data_value=name)


def _adapter(context: Context, row: Row, inner: Sequence[Html], here: bool = False) -> Html:
    t, f, source = context.t, context.f, row["extracted_from"]
    name: Child = row["name"]
    if not here:
        name = h("button", row["name"], type="button", class_="link", data_do="adapters.open", data_value=row["name"])
    told = ""
    if isinstance(source.get("error"), float) and source.get("rank"):
        told = t("adapters.extract_done", rank=f.number(source["rank"]), kept=f.percent(1 - source["error"] ** 2, 1))
    kind = t("adapters.node_extracted") if source else t("adapters.node_adapter")
    return _node(kind, [name, " ", parts.badge(t("adapters.this_adapter"), "live") if here else None], inner, told)


def _node(kind: str, name: Child, inner: Sequence[Html] = (), below: str = "") -> Html:
    told = h("small", below) if below else None
    return h("li", h("div", h("small", kind, class_="kind"), h("span", name), told), h("ul", inner) if inner else None)
