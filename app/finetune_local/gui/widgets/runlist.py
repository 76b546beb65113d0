"""The list of runs on the Runs page, with search, filters and sorting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from finetune_local.gui.widgets import lists, parts
from finetune_local.gui.widgets.html import Child, Html, h, join
from finetune_local.gui.widgets.lists import Column, Place
from finetune_local.gui.widgets.runview import status_of
from finetune_local.runtime.status import Status
from finetune_local.spec.tuners import presets
from finetune_local.training.run_folder.facts import RunFacts

if TYPE_CHECKING:
    from finetune_local.gui.i18n.strings import Strings
    from finetune_local.gui.shell.context import Context

STATUSES = (Status.RUNNING, Status.FINISHED, Status.PAUSED, Status.FAILED, Status.QUEUED)
DAMAGED = "damaged"
"""The filter for damaged runs: damage is no status, and a run of any status may have it."""
MOST_COMPARED = 6
"""The most runs in one chart, which is the number of colours."""


def columns(t: Strings) -> list[Column]:
    """The columns of the list."""
    return [
        Column("run", t("runs.run"), lambda row: row.run),
        Column("status", t("runs.status"), lambda row: STATUSES.index(row.status)),
        Column("method", t("runs.method"), lambda row: (row.method or "", row.model or "")),
        Column("steps", t("runs.steps"), lambda row: row.steps_done, number=True),
        Column("last_loss", t("runs.loss"), lambda row: row.last_loss, number=True),
        Column("validation_loss", t("runs.validation_loss"), lambda row: row.validation_loss, number=True),
        Column("changed_time", t("runs.started"), lambda row: row.changed_time, number=True),
        Column("seconds", t("runs.duration"), lambda row: row.seconds, number=True),
    ]


def file_names(files: Iterable[str]) -> str:
    """The names of the run's data files, without folders."""
    return ", ".join(PurePath(name).name for name in files)


def method_name(t: Strings, key: object) -> str:
    """A method's title; its key if this version does not know it."""
    known = presets().get(str(key))
    return (t.get(f"methods.{key}.title") or known.title) if known else str(key or "–")


def base_name(model: str) -> str:
    """A base model's name: the last part of a path, or ORG/NAME."""
    path = PurePath(model)
    return path.name if path.is_absolute() or "\\" in model else model


def searched(t: Strings, row: RunFacts) -> str:
    """The text that is searched."""
    words = (
        row.run,
        t(f"runs.status_{row.status}"),
        t("runs.damaged") if row.damaged else "",
        row.method or "",
        row.model or "",
        file_names(row.files),
    )
    return " ".join(map(str, words))


def _has(row: RunFacts, status: str) -> bool:
    """Whether a filter lets a run through: "" lets all, a status those that have it, DAMAGED those that are damaged."""
    return row.damaged if status == DAMAGED else status in ("", row.status)


def chosen(t: Strings, rows: Sequence[RunFacts], place: Place, status: str, method: str) -> list[RunFacts]:
    """The rows that match the search and the filters, sorted."""
    filtered = [row for row in rows if _has(row, status) and method in ("", row.method)]
    return lists.ordered(lists.matching(filtered, place.search, lambda row: searched(t, row)), columns(t), place)


def drawn(context: Context, rows: Sequence[RunFacts], all_rows: int, place: Place) -> Html:
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
    cells = [(row.run, _cells(context, row)) for row in shown]
    table = lists.table(t, columns(t), cells, place, caption=t("runs.title"))
    nothing = h("p", t("lists.nothing_found"), class_="soft nothing-found") if not rows else None
    bar = lists.picked_bar(t, f, place, compare, remove)
    return join([bar, table, nothing, lists.pager(t, f, place, len(rows))])


def _cells(context: Context, row: RunFacts) -> list[Child]:
    t, f = context.t, context.f
    name = h("button", row.run, type="button", class_="row-name", data_do="runs.open", data_value=row.run)
    files = h("small", file_names(row.files), class_="cut", title=file_names(row.files)) if row.files else None
    done, steps = row.steps_done, row.max_steps
    progress = f.number(done)
    if row.status != Status.FINISHED and steps:
        progress = f"{progress} / {f.number(steps)}"
    model = row.model or ""
    base = h("small", base_name(model), class_="cut", title=model) if model else None
    method = [h("span", method_name(t, row.method)), base]
    return [
        h("div", name, files, class_="two-lines"),
        status_of(t, row),
        h("div", method, class_="two-lines"),
        progress,
        f.loss(row.last_loss),
        f.loss(row.validation_loss),
        f.moment(row.changed_time),
        f.about(row.seconds),
    ]
