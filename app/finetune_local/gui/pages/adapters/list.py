"""The list of adapters, searched and sorted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune_local.evaluation.metrics import metrics
from finetune_local.gui.widgets import lists, parts
from finetune_local.gui.widgets.html import Child, Html, h, join
from finetune_local.gui.widgets.lists import Column, Place, Row
from finetune_local.gui.widgets.measures import value_text
from finetune_local.gui.widgets.runlist import base_name, file_names, method_name

if TYPE_CHECKING:
    from finetune_local.gui.i18n.strings import Strings
    from finetune_local.gui.shell.context import Context

MOST_IN_CHAT = 4
"""How many adapters can answer side by side."""


def columns(t: Strings) -> list[Column]:
    """The columns, with headings in the window's language."""
    return [
        Column("name", t("adapters.name"), lambda row: row["name"]),
        Column("method", t("adapters.method"), lambda row: (row["method"] or "", row["base"] or "")),
        Column("files", t("adapters.data"), lambda row: file_names(row.get("files", ())) or None),
        Column("scores", t("adapters.score"), _mean, number=True),
        Column("bytes", t("adapters.size"), lambda row: row["bytes"], number=True),
        Column("created_time", t("adapters.created"), lambda row: row["created_time"], number=True),
        Column("actions", h("span", t("adapters.chat"), class_="unseen")),
    ]


def searched(t: Strings, row: Row) -> str:
    """The text that the search matches."""
    words = (
        row["name"],
        row["base"],
        row["method"],
        method_name(t, row["method"]),
        file_names(row.get("files", ())),
        row["note"],
    )
    return " ".join(str(word) for word in words if word)


def chosen(t: Strings, rows: Sequence[Row], place: Place) -> list[Row]:
    """The rows that match the search, sorted."""
    return lists.ordered(lists.matching(rows, place.search, lambda row: searched(t, row)), columns(t), place)


def drawn(context: Context, rows: Sequence[Row], all_rows: int, place: Place) -> Html:
    """The list: the selection with its actions, the table of one page, the pager."""
    t, f = context.t, context.f
    if not all_rows:
        train = parts.button(t("adapters.train"), "go", "train", kind="primary")
        return parts.empty(t("adapters.empty"), t("adapters.empty_text"), train)
    shown, place = lists.on_page(rows, place)
    fits = len(place.picked) <= MOST_IN_CHAT
    chat = parts.button(
        t("adapters.chat_with_these"),
        "adapters.chat_picked",
        kind="small primary",
        disabled=not fits,
        title=None if fits else t("adapters.too_many", n=MOST_IN_CHAT),
    )
    remove = parts.button(t("common.delete"), "adapters.remove_picked", kind="small danger")
    cells = [(row["name"], _cells(context, row)) for row in shown]
    table = lists.table(t, columns(t), cells, place, caption=t("adapters.title"))
    nothing = h("p", t("lists.nothing_found"), class_="soft nothing-found") if not rows else None
    bar = lists.picked_bar(t, f, place, chat, remove)
    return join([bar, table, nothing, lists.pager(t, f, place, len(rows))])


def score_text(context: Context, row: Row, condition: str = "tuned") -> str | None:
    """The score of a condition in the newest evaluation, in the metric of its verdict; None if there is no evaluation."""
    value = _mean(row, condition)
    if value is None:
        return None
    metric = metrics().get(row["scores"]["metric"])
    return None if metric is None else value_text(context.f, metric, value, 4)


def _mean(row: Row, condition: str = "tuned") -> float | None:
    scores: Any = row.get("scores")
    measured: Any = scores.get(condition) if isinstance(scores, Mapping) else None
    return float(measured[scores["metric"]]["mean"]) if measured else None


def _cells(context: Context, row: Row) -> list[Child]:
    t, f = context.t, context.f
    name = h("button", row["name"], type="button", class_="row-name", data_do="adapters.open", data_value=row["name"])
    below: Child = (
        h("small", row["note"].splitlines()[0], class_="cut note", title=row["note"]) if row["note"] else None
    )
    if row["problem"]:
        below = parts.badge(t("adapters.damaged"), "bad")
    method = method_name(t, row["method"]) + (f", r = {row['rank']}" if row["rank"] else "")
    base = h("small", base_name(str(row["base"])), class_="cut", title=row["base"]) if row["base"] else None
    files = file_names(row.get("files", ()))
    origin = t("adapters.imported") if row["origin"] == "imported" and not row["extracted_from"] else ""
    learned = files or (t("adapters.extracted") if row["extracted_from"] else origin)
    before = score_text(context, row, "base")
    score = [
        h("span", score_text(context, row) or "–"),
        h("small", t("adapters.base_had", score=before)) if before else None,
    ]
    chat = parts.button(t("adapters.chat"), "adapters.chat", row["name"], kind="quiet small")
    return [
        h("div", name, below, class_="two-lines"),
        h("div", h("span", method), base, class_="two-lines"),
        h("span", learned, class_="cut" if files else "cut soft", title=files or None),
        h("div", score, class_="two-lines to-end"),
        f.size(row["bytes"]),
        f.moment(row["created_time"]),
        chat if not row["problem"] else None,
    ]
