from __future__ import annotations

import pytest

from finetune_local.gui.widgets.html import Html, esc, h, join

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' onfocus='alert(1)",
    "{{value}} {{#each value}}x{{/each}}",
    "${alert(1)} `${1}`",
    "&lt;b&gt;",
    "</td></table><h1>",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_stays_a_text_in_content_and_in_attributes(text: str) -> None:
    for made in (h("p", text), h("p", "x", title=text), h("p", ["a", [text]]), join([text])):
        inside = made.removeprefix("<p>").removeprefix("<p").removesuffix("</p>")
        assert not any(c in inside.replace('title="', "").replace('">x', "") for c in "<>\"'{}$`")


def test_what_is_escaped_reads_the_same() -> None:
    import html

    text = "a < b & {c} `d` ${e} \"f\" 'g' 中文 \n\t end"
    assert html.unescape(esc(text)) == text


def test_control_characters_are_left_out() -> None:
    assert esc("a\x00b\x1b[31mc\u202e") == "ab[31mc\u202e"


def test_markup_made_here_is_not_escaped_again() -> None:
    assert h("div", h("b", "<"), None, False, ["x", Html("<i></i>")]) == "<div><b>&#60;</b>x<i></i></div>"


def test_attributes() -> None:
    made = h(
        "button",
        "x",
        type="button",
        class_="a b",
        data_do="go",
        disabled=True,
        hidden=False,
        title=None,
        aria_label="é",
    )
    assert made == '<button type="button" class="a b" data-do="go" disabled aria-label="é">x</button>'
    assert h("br") == "<br>"
    assert h("line", x1=0) == '<line x1="0"></line>'  # what is not closed would hold the rest of the drawing
