"""Notices at the top of a page: an error of the app, a defect with its traceback, or a success."""

from __future__ import annotations

import re

from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.widgets.html import Html, h
from finetune_local.system.errors import FinetuneError


def problem(t: Strings, error: FinetuneError, *buttons: Html) -> Html:
    """An error of the app, with its title and its sentence."""
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


def good(t: Strings, title: str, text: str = "", *buttons: Html) -> Html:
    """A success."""
    return notice(t, "good", title, text, *buttons)


def defect(t: Strings, trace: str) -> Html:
    """A defect of the app, with its traceback to copy."""
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
