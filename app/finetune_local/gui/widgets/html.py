"""Safe HTML: every text is escaped, unless it is HTML that this module built.

So data, model answers, file names and error messages are shown as text and never run. Besides <, >, & and quotes, the characters of
Gradio's templates ({, }, $, `) are escaped too, so that no text is taken for a template.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_ESCAPES = {ord(c): f"&#{ord(c)};" for c in "<>&\"'{}$`"}
_CONTROL = dict.fromkeys(i for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t")
_VOID = frozenset({"br", "hr", "img", "input"})
"""Elements without an end tag. SVG elements need one, or browsers would take what follows for their content."""


class Html(str):
    """Markup that is inserted without escaping."""

    __slots__ = ()


Child = Any
"""Text, Html, None, or an iterable of them."""


def esc(text: object) -> Html:
    """Escaped text; Html is returned unchanged."""
    if isinstance(text, Html):
        return text
    return Html(str(text).translate(_CONTROL).translate(_ESCAPES))


def h(name: str, *children: Child, **attributes: Any) -> Html:
    """An element: h("p", "text", class_="note", data_do="runs.open", aria_label="…").

    In names of attributes, a trailing underscore is dropped and others become hyphens. None and False omit the attribute; True writes
    it without a value.
    """
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Child], between: str = "") -> Html:
    """Children as one piece of markup."""
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
