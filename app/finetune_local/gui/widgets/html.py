"""HTML that cannot be broken out of: every text that is put into it is escaped, unless it is HTML made here.

Data, model answers, file names and error messages are shown as text. Besides <, >, & and quotes the characters of Gradio's
templates ({, }, $, `) are written as references, so that no text is ever taken for a template.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_ESCAPES = {ord(c): f"&#{ord(c)};" for c in "<>&\"'{}$`"}
_CONTROL = dict.fromkeys(i for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t")
_VOID = frozenset({"br", "hr", "img", "input"})
"""Elements that are never closed. SVG's must be: a browser would take what follows for their content."""


class Html(str):
    """Markup that is safe to put into other markup."""

    __slots__ = ()


Child = Any
"""Text, Html, None, or an iterable of them."""


def esc(text: object) -> Html:
    """A text as markup."""
    if isinstance(text, Html):
        return text
    return Html(str(text).translate(_CONTROL).translate(_ESCAPES))


def h(name: str, *children: Child, **attributes: Any) -> Html:
    """An element: h("p", "text", class_="note", data_do="runs.open", aria_label="…").

    A trailing underscore of an attribute is dropped, the others become hyphens; None and False leave it out, True writes it bare.
    """
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Child], between: str = "") -> Html:
    """Several as one."""
    return Html(esc(between).join(_flat(children)))


def _flat(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None or child is False:
            continue
        if isinstance(child, str):
            yield esc(child)
        elif isinstance(child, Iterable):
            yield from _flat(child)
        else:
            yield esc(child)


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {key}"
    return f' {key}="{esc(value)}"'
