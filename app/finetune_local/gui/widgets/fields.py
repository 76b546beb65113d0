"""Input fields of views: selects, numbers, paths. A change is sent as a press of the field's data-do (app.js)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from finetune_local.gui.widgets.html import Child, Html, h

if TYPE_CHECKING:
    from finetune_local.gui.i18n.strings import Strings

Option = tuple[str, Child, bool, dict[str, Any]]
"""An item of options(): value, content, whether it can be chosen, further attributes."""


def select(
    label: str,
    do: str,
    value: str,
    choices: Iterable[tuple[str, str]],
    chosen: str,
    *,
    id: str,  # noqa: A002
    help: Child = None,  # noqa: A002
) -> Html:
    """A drop-down list; `choices` are (value, label)."""
    options = [h("option", text, value=key, selected=key == chosen) for key, text in choices]
    return _labelled(label, h("select", options, id=id, data_do=do, data_value=value), id, help)


def number(
    label: str,
    do: str,
    value: str,
    now: object,
    *,
    id: str,  # noqa: A002
    help: Child = None,  # noqa: A002
    placeholder: str = "",
    least: int = 0,
    most: int | None = None,
) -> Html:
    """A field for a whole number; empty means automatic."""
    box = h(
        "input", type="number", id=id, value="" if now is None else now, data_do=do, data_value=value,
        placeholder=placeholder, min=least, max=most, step="1", inputmode="numeric", autocomplete="off",
    )  # fmt: skip
    return _labelled(label, box, id, help)


def path(
    t: Strings,
    label: str,
    do: str,
    value: str,
    now: str,
    *,
    id: str,  # noqa: A002
    pick: str,
    help: Child = None,  # noqa: A002
    placeholder: str = "",
) -> Html:
    """A field for a path. Where the window has a file dialog, a button opens it; `pick` is "file" or "folder"."""
    box = h(
        "input", type="text", id=f"{id}-field", value=now, data_do=do, data_value=value, placeholder=placeholder,
        autocomplete="off", spellcheck="false", dir="ltr",
    )  # fmt: skip
    browse = h(
        "button", t("common.browse"), type="button", class_="button needs-window", data_pick=pick, data_into=id,
    )  # fmt: skip
    inner = h("div", h("span", box, id=id, class_="grow"), browse, class_="row nowrap")
    return _labelled(label, inner, f"{id}-field", help)


def check(label: str, do: str, value: str, on: bool, *, id: str, help: Child = None) -> Html:  # noqa: A002
    """A check box."""
    box = h("input", type="checkbox", id=id, checked=on, data_do=do, data_value=value)
    return h("label", box, h("span", label, h("small", help) if help else None), class_="check", for_=id)


def options(label: str, do: str, choices: Iterable[Option], chosen: str, *, class_: str = "") -> Html:
    """A choice among boxes to press."""
    made = [
        h(
            "button", content, type="button", class_=f"choice{' chosen' if value == chosen else ''}", data_do=do,
            data_value=value, aria_pressed="true" if value == chosen else "false", disabled=not can, **more,
        )
        for value, content, can, more in choices
    ]  # fmt: skip
    return h("div", made, class_=f"options {class_}".strip(), role="group", aria_label=label)


def _labelled(label: str, box: Html, id: str, help: Child) -> Html:  # noqa: A002
    return h("div", h("label", label, for_=id), box, h("small", help) if help else None, class_="field")
