"""A table of rows, and one row token by token: which tokens are learned and which are context.

Everything here is untrusted text. It is escaped, control characters are made visible, and it is isolated so that bidirectional marks
cannot affect the text around it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h

PAGE = 10
"""Rows per page of the table."""

_CONTROL = [i for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"]
_TURNING = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C]
_VISIBLE = {i: f"⟨U+{i:04X}⟩" for i in (*_CONTROL, *_TURNING)}


def visible(text: str) -> str:
    """The text with invisible and bidirectional control characters replaced by visible signs."""
    return text.translate(_VISIBLE)


def data_text(text: str, class_: str = "") -> Html:
    """Untrusted text in an isolated direction."""
    return h("bdi", visible(text), dir="auto", class_=class_ or None)


def reason_text(t: Strings, reason: str) -> str:
    """A reason without its command-line advice: the page has fields for that."""
    shown = re.split(r"(?<=[.!?]) (?=[A-Z])|(?<=[。！？])", sentence(t, reason))
    kept = [part for part in shown if part and not re.search(r"--(?!max-length)[a-z]", part)] or shown
    return ("" if t.language == "zh" else " ").join(kept).replace("--max-length", f"“{t('data.max_length')}”")


def rows_card(t: Strings, f: Formats, rows: Mapping[str, Any], readable: int | None, chosen: int) -> Html:
    """One page of the table. `readable`: the number of all rows, if known."""
    found = rows["rows"]
    first = int(rows["first"])
    tokens = any(row["tokens"] is not None for row in found)
    headings = [(t("data.row_number"), "number"), (t("data.row_question"), ""), (t("data.row_answer"), "")]
    headings += [(t("data.row_tokens"), "number"), (t("data.row_learned"), "number")] if tokens else []
    headings += [(t("data.row_turns"), "number"), ("", "")]
    table = h(
        "div",
        h(
            "table",
            h("caption", t("data.rows_caption"), class_="unseen"),
            h(
                "thead",
                h(
                    "tr",
                    [
                        h(
                            "th",
                            title or h("span", t("data.row_show"), class_="unseen"),
                            scope="col",
                            class_=kind or None,
                        )
                        for title, kind in headings
                    ],
                ),
            ),
            h("tbody", [_row(t, f, row, tokens, chosen) for row in found]),
        ),
        class_="table data-rows",
        tabindex="0",
        role="region",
        aria_label=t("data.rows_caption"),
    )
    last = first + len(found)
    if readable is None:
        place = t("data.row_shown_open", first=f.number(first + 1), last=f.number(last))
    else:
        place = t("data.row_shown", first=f.number(first + 1), last=f.number(last), n=f.number(readable))
    more = not rows["end"] and (readable is None or last < readable)
    pager = h(
        "div",
        h("span", place, class_="soft"),
        parts.button("«", "data.page", 0, kind="small quiet", title=t("data.row_first"), disabled=first == 0),
        parts.button(
            "‹", "data.page", max(0, first - PAGE), kind="small quiet", title=t("data.row_before"), disabled=first == 0
        ),
        parts.button("›", "data.page", last, kind="small quiet", title=t("data.row_after"), disabled=not more),
        class_="row row-pages",
    )
    return parts.card(h("div", h("h2", t("data.rows")), pager, class_="row between"), table, class_="flush")


def _row(t: Strings, f: Formats, row: Mapping[str, Any], tokens: bool, chosen: int) -> Html:
    number = int(row["number"])
    shown = f.number(number + 1)
    cells = [
        h("td", shown, class_="number"),
        h("td", data_text(row["prompt"]), class_="cell"),
        h(
            "td",
            data_text(row["answer"]),
            h("span", reason_text(t, row["reason"]), class_="hint bad") if row["reason"] else None,
            class_="cell",
        ),
    ]
    if tokens:
        cells += [h("td", f.number(row["tokens"]), class_="number"), h("td", f.number(row["learned"]), class_="number")]
    button = parts.button(
        t("data.row_show"), "data.row", number, kind="small quiet", title=t("data.row_show_of", n=shown)
    )
    cells += [
        h("td", f.number(row["turns"]) if row["turns"] else "", class_="number"),
        h("td", button, class_="actions"),
    ]
    is_chosen = number == chosen
    return h(
        "tr",
        cells,
        data_do="data.row",
        data_value=number,
        class_="chosen" if is_chosen else None,
        aria_current="true" if is_chosen else None,
    )


def mask_card(t: Strings, f: Formats, rows: Mapping[str, Any], chosen: int, readable: int | None) -> Html | None:
    """The selected row, token by token."""
    mask = rows["masks"].get(str(chosen))
    if mask is None:
        return None
    shown = f.number(chosen + 1)
    last = readable is not None and chosen + 1 >= readable
    head = h(
        "div",
        h("h2", t("data.mask", n=shown), id="data-mask-title"),
        h(
            "div",
            parts.button(
                "‹", "data.row", chosen - 1, kind="small quiet", title=t("data.mask_previous"), disabled=chosen == 0
            ),
            parts.button("›", "data.row", chosen + 1, kind="small quiet", title=t("data.mask_next"), disabled=last),
            class_="row",
        ),
        class_="row between",
    )
    place = data_text(t("data.mask_place", file=_name(mask["file"]), n=mask["line"]))
    reason = next((row["reason"] for row in rows["rows"] if row["number"] == chosen and row["reason"]), "")
    why = h("p", t("data.mask_why", reason=reason_text(t, reason)), class_="hint bad") if reason else None
    if "pieces" not in mask:
        return parts.card(head, h("p", place, class_="soft"), why, [_turn(t, *turn) for turn in mask["turns"]])
    count = mask["tokens"]
    legend = h(
        "p",
        h("span", t("data.mask_learned"), class_="tok learned"),
        h("span", t("data.mask_read"), class_="tok"),
        h("span", t("data.mask_special"), class_="tok special"),
        h("span", place, " · ", t("data.mask_tokens", n=f.number(count)), class_="soft"),
        class_="row legend",
    )
    cut = h("p", t("data.mask_cut", n=mask["cut"]), class_="hint") if mask["cut"] else None
    text = h(
        "div",
        [_piece(text, learned, special) for text, learned, special in mask["pieces"]],
        class_="mask mono",
        dir="auto",
        tabindex="0",
        role="region",
        aria_labelledby="data-mask-title",
        data_scroll=f"mask {chosen}",
    )
    more = h("p", t("data.mask_more", n=f.number(mask["more"])), class_="soft") if mask["more"] else None
    return parts.card(head, legend, cut, text, more)


def _piece(text: str, learned: bool, special: bool) -> Html:
    """One token. A line break is shown by a sign and kept."""
    kind = " ".join(["tok", *(["learned"] if learned else []), *(["special"] if special else [])])
    return h("ins" if learned else "span", visible(text).replace("\n", "⏎\n"), class_=kind)


def _turn(t: Strings, role: str, text: str, learned: bool) -> Html:
    name = t(f"data.role_of_{role}")
    inner = data_text(text, "text")
    return h(
        "div",
        h("span", name, class_="soft"),
        h("div", inner, class_="turn-text"),
        class_="turn learned" if learned else "turn",
    )


def _name(file: str) -> str:
    return file.replace("\\", "/").rsplit("/", 1)[-1]
