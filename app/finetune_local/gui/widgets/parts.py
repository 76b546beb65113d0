"""Building blocks of pages: views, headers, buttons, cards, tables, progress bars, notices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.widgets.html import Child, Html, h
from finetune_local.system.errors import FinetuneError

if TYPE_CHECKING:
    import gradio as gr

    from finetune_local.gui.i18n.formats import Formats

# app.js sends a press on an element with data-do, or a change of a select, as a click event with the element's data-*.
_ON_LOAD = "ftl.attach(element, trigger, watch);"


def view(value: str = "", *, id: str | None = None, class_: str = "", visible: bool = True) -> gr.HTML:  # noqa: A002
    """A component for HTML from h(). Its `.click` event carries the data-* of the pressed button: see pressed()."""
    import gradio as gr

    return gr.HTML(
        value,
        elem_id=id,
        elem_classes=["view", *class_.split()],
        visible=visible,
        js_on_load=_ON_LOAD,
        apply_default_css=False,
    )


def pressed(event: Any) -> tuple[str, str, Mapping[str, str]]:
    """The action (data-do), the value (data-value) and all data-* of the button that a view's click event comes from."""
    sent: Any = getattr(event, "_data", None)
    items = sent.items() if isinstance(sent, Mapping) else ()
    data = {str(name): str(value) for name, value in items if isinstance(value, (str, int, float))}
    return data.get("do", ""), data.get("value", ""), data


def header(title: str, lead: str, *actions: Child) -> Html:
    """A page's title, a sentence below it, and buttons on the right."""
    return h(
        "header",
        h("div", h("h1", title), h("p", lead) if lead else None),
        h("div", *actions, class_="row") if actions else None,
        class_="page-header",
    )


def button(
    label: Child,
    do: str,
    value: object = None,
    *,
    kind: str = "",
    title: str | None = None,
    disabled: bool = False,
    **data: Any,
) -> Html:
    """A button of a view. `kind` is "primary", "danger", "quiet", "small", or several of them."""
    more = {f"data_{key}": str(item) for key, item in data.items()}
    return h(
        "button",
        label,
        type="button",
        class_=f"button {kind}".strip(),
        data_do=do,
        data_value=value,
        title=title,
        aria_label=title,
        disabled=disabled,
        **more,
    )


def card(*children: Child, title: Child = None, class_: str = "", **attributes: Any) -> Html:
    """A box with an optional title."""
    return h("section", h("h2", title) if title else None, *children, class_=f"card {class_}".strip(), **attributes)


def facts(pairs: Iterable[tuple[Child, Child]]) -> Html:
    """A list of names and values, without empty values."""
    return h(
        "dl", [(h("dt", name), h("dd", value)) for name, value in pairs if value not in (None, "")], class_="facts"
    )


def figure(name: str, value: Child, under: Child = None) -> Html:
    """A number with its label."""
    return h("div", h("span", name), h("b", value), h("small", under) if under else None, class_="figure")


def figures(*items: Html) -> Html:
    """A row of figures."""
    return h("div", *items, class_="figures")


def table(headings: Sequence[Child], rows: Iterable[Sequence[Child]], *, caption: str, class_: str = "") -> Html:
    """A table; `caption` is for screen readers. A cell or a heading may be a (child, class) pair."""

    def cell(content: Child, name: str = "td", **more: str) -> Html:
        if isinstance(content, tuple):
            return h(name, content[0], class_=content[1], **more)
        return h(name, content, **more)

    return h(
        "div",
        h(
            "table",
            h("caption", caption, class_="unseen"),
            h("thead", h("tr", [cell(heading, "th", scope="col") for heading in headings])),
            h("tbody", [h("tr", [cell(c) for c in row]) for row in rows]),
        ),
        class_=f"table {class_}".strip(),
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def badge(text: Child, kind: str = "") -> Html:
    """A word in a coloured pill. `kind` is "good", "warn", "bad", "live" or ""."""
    return h("span", text, class_=f"badge {kind}".strip())


def progress(t: Strings, f: Formats, text: str, done: float | None, seconds_left: float | None = None) -> Html:
    """A progress bar with a text and the time left. `done` is a share from 0 to 1; None is shown as unknown."""
    share = None if done is None else min(1.0, max(0.0, done))
    right = f.percent(share) if share is not None else ""
    if seconds_left is not None:
        right += " · " + t("common.left", span=f.about(seconds_left))
    return h(
        "div",
        h("div", h("span", text), h("span", right), class_="progress-text"),
        h(
            "div",
            h("i", style=f"width:{100 * share:.1f}%" if share is not None else None),
            class_="bar" if share is not None else "bar unknown",
            role="progressbar",
            aria_label=text or t("common.working"),
            aria_valuemin="0",
            aria_valuemax="100",
            aria_valuenow=f"{100 * share:.0f}" if share is not None else None,
        ),
        class_="progress",
    )


def empty(title: str, text: str, *actions: Child) -> Html:
    """What stands in place of an empty list: what would be in it, and how to add it."""
    return h("div", h("h2", title), h("p", text), h("div", *actions, class_="row center"), class_="empty")


def error_notice(t: Strings, error: FinetuneError, *buttons: Html) -> Html:
    """A notice of an error of the app: its title and sentence."""
    title = t.get(f"errors.{error.code}") or t("errors.UserError")
    return notice(t, "bad", title, error.message, *buttons)


def notice(t: Strings, kind: str, title: str, text: str, *buttons: Html) -> Html:
    """A notice. `kind` is "good", "bad" or "note"; `text` may be empty or have several lines."""
    lines = [line for line in sentence(t, text).splitlines() if line.strip()]
    body = h("p", lines[0]) if len(lines) == 1 else h("ul", [h("li", line) for line in lines]) if lines else None
    return h(
        "div",
        h("div", h("strong", title), body, h("div", *buttons, class_="row") if buttons else None, class_="grow"),
        h("button", "×", type="button", class_="close", data_do="notice.close", aria_label=t("common.close")),
        class_=f"notice {kind}",
        role="alert" if kind == "bad" else "status",
    )


def success_notice(t: Strings, title: str, text: str = "", *buttons: Html) -> Html:
    """A notice of a success."""
    return notice(t, "good", title, text, *buttons)


def defect_notice(t: Strings, trace: str) -> Html:
    """A notice of a defect of the app, with its traceback to copy."""
    return h(
        "div",
        h(
            "div",
            h("strong", t("errors.defect")),
            h("p", t("errors.defect_text")),
            h("details", h("summary", t("errors.show_details")), h("pre", _without_home(trace), tabindex="0")),
            h("button", t("common.copy"), type="button", class_="button small", data_copy=_without_home(trace)),
            class_="grow",
        ),
        h("button", "×", type="button", class_="close", data_do="notice.close", aria_label=t("common.close")),
        class_="notice bad",
        role="alert",
    )


def _without_home(trace: str) -> str:
    """A traceback without the user's name in its paths, so that it can be shared."""
    return re.sub(r"(/home|/Users|C:\\Users)[/\\][^/\\\s\"']+", "~", trace)
