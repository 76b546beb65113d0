"""Long lists with search, sorting by column, pages of fifty rows, and selection.

A page stores the Place in its state, so that the list looks the same after a reload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Child, Html, h, join

if TYPE_CHECKING:
    from finetune_local.gui.i18n.formats import Formats
    from finetune_local.gui.i18n.strings import Strings

SIZE = 50
"""Rows per page."""

Row = Mapping[str, Any]

R = TypeVar("R")
"""A row of any kind."""


@dataclass(frozen=True)
class Column:
    """A column: key, heading, the value to sort by (None: it cannot be sorted by), and whether it contains numbers."""

    key: str
    title: Child
    value: Callable[[Any], Any] | None = None
    number: bool = False


@dataclass(frozen=True)
class Place:
    """What a window shows of a list. `picked` are the names of the selected rows."""

    sort: str
    down: bool
    page: int = 0
    search: str = ""
    picked: tuple[str, ...] = ()


def moved(
    place: Place, do: str, value: str, data: Mapping[str, str], shown: Sequence[str], columns: Sequence[Column]
) -> Place | None:
    """The place after a press of a list's button; None if it is another button. `shown` are the names of the rows in view."""
    match do:
        case "list.sort":
            numbers = any(column.number for column in columns if column.key == value)  # numbers start with the largest
            return replace(place, sort=value, down=not place.down if value == place.sort else numbers, page=0)
        case "list.page":
            return replace(place, page=max(0, int(value)) if value.isdecimal() else 0)
        case "list.pick":
            name, on = data.get("key", ""), value == "true"
            rest = tuple(other for other in place.picked if other != name)
            return replace(place, picked=(*rest, name) if on else rest)
        case "list.all":
            rest = tuple(name for name in place.picked if name not in shown)
            return replace(place, picked=(*rest, *shown) if value == "true" else rest)
        case "list.none":
            return replace(place, picked=())
    return None


def matching(rows: Iterable[R], search: str, text: Callable[[R], str]) -> list[R]:
    """The rows whose text contains every word of a search, ignoring case."""
    words = search.casefold().split()
    return [row for row in rows if all(word in text(row).casefold() for word in words)] if words else list(rows)


def ordered(rows: Iterable[R], columns: Sequence[Column], place: Place) -> list[R]:
    """The rows, sorted as the place says. Rows without a value come last in both directions."""
    column = next((column for column in columns if column.key == place.sort and column.value), None)
    if column is None or (value := column.value) is None:
        return list(rows)
    known = [(_key(value(row)), row) for row in rows]
    with_value = sorted((pair for pair in known if pair[0] is not None), key=lambda pair: pair[0], reverse=place.down)
    return [row for _, row in with_value] + [row for key, row in known if key is None]


def on_page(rows: Sequence[R], place: Place) -> tuple[Sequence[R], Place]:
    """The rows of the place's page, and the place with its page limited to those that exist."""
    last = max(0, (len(rows) - 1) // SIZE)
    place = replace(place, page=min(place.page, last))
    return rows[place.page * SIZE : (place.page + 1) * SIZE], place


def table(
    t: Strings, columns: Sequence[Column], rows: Sequence[tuple[str, Sequence[Child]]], place: Place, *, caption: str
) -> Html:
    """A table of the rows in view, each (name, cells), with a box to select it."""
    names = [name for name, _ in rows]
    everything = bool(names) and set(names) <= set(place.picked)
    box = _box("list.all", None, everything, t("lists.pick_all"))
    body = [
        h(
            "tr",
            h("td", _box("list.pick", name, name in place.picked, t("lists.pick", name=name)), class_="pick"),
            [
                h("td", cell, class_="number" if column.number else "")
                for column, cell in zip(columns, cells, strict=True)
            ],
            class_="picked" if name in place.picked else None,
        )
        for name, cells in rows
    ]
    return h(
        "div",
        h(
            "table",
            h("caption", caption, class_="unseen"),
            h("thead", h("tr", h("th", box, scope="col", class_="pick"), [_heading(c, place) for c in columns])),
            h("tbody", body),
        ),
        class_="table list-table",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def pager(t: Strings, f: Formats, place: Place, count: int) -> Html:
    """Which rows are in view, of how many, with buttons for other pages; empty if there is one page."""
    if count <= SIZE:
        return Html("")
    first, last = place.page * SIZE + 1, min(count, (place.page + 1) * SIZE)
    return h(
        "nav",
        parts.button(t("lists.before"), "list.page", place.page - 1, kind="small", disabled=place.page == 0),
        h("span", t("lists.shown", first=f.number(first), last=f.number(last), n=f.number(count)), class_="soft"),
        parts.button(t("lists.after"), "list.page", place.page + 1, kind="small", disabled=last >= count),
        class_="pager",
        aria_label=t("lists.pages"),
    )


def picked_bar(t: Strings, f: Formats, place: Place, *buttons: Child) -> Html:
    """The number of selected rows, with buttons for actions on them; empty if none is selected."""
    if not place.picked:
        return Html("")
    count = len(place.picked)
    clear = parts.button(t("lists.none"), "list.none", kind="quiet small")
    selected = h("strong", t("lists.picked", n=f.number(count)))
    return h("div", selected, *buttons, clear, class_="picked-bar row", role="status")


def segmented(do: str, choices: Iterable[tuple[str, str]], chosen: str, label: str) -> Html:
    """A row of buttons of which one is pressed; `choices` are (value, label)."""
    buttons = [
        h(
            "button",
            text,
            type="button",
            data_do=do,
            data_value=value,
            aria_pressed="true" if value == chosen else "false",
        )
        for value, text in choices
    ]
    return h("div", buttons, class_="segmented", role="group", aria_label=label)


def form(
    do: str, value: str, fields: Child, save: str, cancel: Child = None, *, class_: str = "", **attributes: Any
) -> Html:
    """A small form within a view. Its fields are sent with the press, by name (app.js)."""
    return h(
        "form",
        fields,
        h("div", h("button", save, type="submit", class_="button primary small"), cancel, class_="row"),
        class_=f"small-form {class_}".strip(),
        data_do=do,
        data_value=value,
        autocomplete="off",
        **attributes,
    )


def field(
    label: str,
    name: str,
    value: str = "",
    *,
    hint: Child = None,
    lines: int = 1,
    box: str | None = None,
    **more: Any,
) -> Html:
    """A labelled text field of a form(). `box` is the id of the whole, for data-into.

    No field may be called "path": Gradio treats a value with a "path" as a file, and refuses those that are not its own.
    """
    inner = (
        h("input", type="text", name_=name, value=value, spellcheck="false", **more)
        if lines == 1
        else h("textarea", value, name_=name, rows=str(lines), **more)
    )
    return h("label", h("span", label), inner, h("small", hint) if hint else None, class_="field", id=box)


def _heading(column: Column, place: Place) -> Html:
    kind = "number" if column.number else None
    if column.value is None:
        return h("th", column.title, scope="col", class_=kind)
    sorted_by = column.key == place.sort
    order = ("descending" if place.down else "ascending") if sorted_by else "none"
    arrow = h("span", "↓" if place.down else "↑", aria_hidden="true") if sorted_by else None
    press = h("button", join([column.title, " ", arrow]), type="button", data_do="list.sort", data_value=column.key)
    return h("th", press, scope="col", class_=kind, aria_sort=order)


def _box(do: str, name: str | None, on: bool, label: str) -> Html:
    return h("input", type="checkbox", data_do=do, data_value=name, checked=on, aria_label=label)


def _key(value: Any) -> Any:
    return value.casefold() if isinstance(value, str) else value
