"""The list of runs on the Runs page, with search, filters and sorting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from finetune_local.gui.widgets import lists, parts
from finetune_local.gui.widgets.html import Child, Html, h, join
from finetune_local.gui.widgets.lists import Column, Place, Row
from finetune_local.gui.widgets.runview import status_of
from finetune_local.runtime.status import Status
from finetune_local.spec.tuners import presets
from finetune_local.training.run_folder.facts import DAMAGED

if TYPE_CHECKING:
    from finetune_local.gui.i18n.strings import Strings
    from finetune_local.gui.shell.context import Context

STATUSES = (Status.RUNNING, Status.FINISHED, Status.PAUSED, Status.FAILED, Status.QUEUED)
MOST_COMPARED = 6
"""The most runs in one chart, which is the number of colours."""


def columns(t: Strings) -> list[Column]:
    """The columns of the list."""
    return [
        Column("run", t("runs.run"), lambda row: row["run"]),
        Column("status", t("runs.status"), lambda row: STATUSES.index(row["status"])),
        Column("method", t("runs.method"), lambda row: (row.get("method", ""), row.get("model", ""))),
        Column("steps", t("runs.steps"), steps_done, number=True),
        Column("last_loss", t("runs.loss"), lambda row: row.get("last_loss"), number=True),
        Column("validation_loss", t("runs.validation_loss"), lambda row: row.get("validation_loss"), number=True),
        Column("changed_time", t("runs.started"), lambda row: row["changed_time"], number=True),
        Column("seconds", t("runs.duration"), lambda row: row.get("seconds"), number=True),
    ]


def steps_done(row: Row) -> int | None:
    """The number of completed steps; None if it is unknown."""
    if "step" in row:
        return int(row["step"])
    return row.get("steps") if "first_loss" in row else None


def file_names(row: Row) -> str:
    """The names of the run's data files, without folders."""
    return ", ".join(PurePath(name).name for name in row.get("files", ()))


def method_name(t: Strings, key: object) -> str:
    """A method's title; its key if this version does not know it."""
    known = presets().get(str(key))
    return (t.get(f"methods.{key}.title") or known.title) if known else str(key or "–")


def base_name(model: str) -> str:
    """A base model's name: the last part of a path, or ORG/NAME."""
    path = PurePath(model)
    return path.name if path.is_absolute() or "\\" in model else model


def searched(t: Strings, row: Row) -> str:
    """The text that is searched."""
    words = (
        row["run"],
        t(f"runs.status_{row['status']}"),
        t("runs.damaged") if row.get(DAMAGED) else "",
        row.get("method", ""),
        row.get("model", ""),
        file_names(row),
    )
    return " ".join(map(str, words))


def chosen(t: Strings, rows: Sequence[Row], place: Place, status: str, method: str) -> list[Row]:
    """The rows that match the search and the filters, sorted."""
    filtered = [row for row in rows if status in ("", row["status"]) and method in ("", row.get("method"))]
    return lists.ordered(lists.matching(filtered, place.search, lambda row: searched(t, row)), columns(t), place)


def drawn(context: Context, rows: Sequence[Row], all_rows: int, place: Place) -> Html:
    """The list: actions on selected rows, the table of one page, the pager."""
    t, f = context.t, context.f
    if not all_rows:
        begin = parts.button(t("runs.set_up"), "go", "train", kind="primary")
        return parts.empty(t("runs.empty"), t("runs.empty_text"), begin)
    shown, place = lists.on_page(rows, place)
    count = len(place.picked)
    compare = parts.button(
        t("runs.compare"),
        "runs.compare",
        kind="small primary",
        disabled=not 2 <= count <= MOST_COMPARED,
        title=None if 2 <= count <= MOST_COMPARED else t("runs.compare_how", n=MOST_COMPARED),
    )
    remove = parts.button(t("common.delete"), "runs.remove_picked", kind="small danger")
    cells = [(row["run"], _cells(context, row)) for row in shown]
    table = lists.table(t, columns(t), cells, place, caption=t("runs.title"))
    nothing = h("p", t("lists.nothing_found"), class_="soft nothing-found") if not rows else None
    bar = lists.picked_bar(t, f, place, compare, remove)
    return join([bar, table, nothing, lists.pager(t, f, place, len(rows))])


def _cells(context: Context, row: Row) -> list[Child]:
    t, f = context.t, context.f
    name = h("button", row["run"], type="button", class_="row-name", data_do="runs.open", data_value=row["run"])
    files = h("small", file_names(row), class_="cut", title=file_names(row)) if row.get("files") else None
    done, steps = steps_done(row), number(row, "max_steps")
    progress = f.number(done)
    if row["status"] != Status.FINISHED and steps:
        progress = f"{progress} / {f.number(steps)}"
    model = str(row.get("model", ""))
    base = h("small", base_name(model), class_="cut", title=model) if model else None
    method = [h("span", method_name(t, row.get("method"))), base]
    return [
        h("div", name, files, class_="two-lines"),
        status_of(t, row),
        h("div", method, class_="two-lines"),
        progress,
        f.loss(number(row, "last_loss")),
        f.loss(number(row, "validation_loss")),
        f.moment(row["changed_time"]),
        f.about(number(row, "seconds")),
    ]


def number(row: Row, key: str) -> float | None:
    """A number among a run's facts; None if the value is missing or not a number."""
    value: Any = row.get(key)
    return float(value) if isinstance(value, int | float) else None
