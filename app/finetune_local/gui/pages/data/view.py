"""The cards of the Data page: the files, figures, notes, lengths, and rejected rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_local.data.formats import formats
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.pages.data.rows import data_text, reason_text
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h, join
from finetune_local.gui.widgets.measures import objective_summary, objective_title
from finetune_local.spec.objectives import Objective, suggested
from finetune_local.spec.run import DataSettings

REJECTED_SHOWN = 50
_LINES_SHOWN = 8
_FILES = {
    "table": "question,answer\n…,…",
    "chat": "[31/12/2025, 10:15] Alice: …\n[31/12/2025, 10:16] Bob: …",
}
"""Examples of files whose rows are not JSON."""
_BARS = 12
_UNUSED_SHOWN = 8

Values = Mapping[str, Any]


def files_card(t: Strings, f: Formats, settings: DataSettings, found: Values | None) -> Html:
    """The files, each with its format, its use, and a button to remove it."""
    known = {file["name"]: file for file in (*found["report"]["files"], *found["validation"])} if found else {}
    problems = {problem["file"]: problem["message"] for problem in found["problems"]} if found else {}
    rows = [
        _file(t, f, name, use, known.get(name), problems.get(name, ""))
        for use, names in (("train", settings.files), ("validate", settings.validation_files))
        for name in names
    ]
    general = [h("p", reason_text(t, text), class_="hint bad") for file, text in problems.items() if not file]
    return parts.card(h("ul", rows, class_="data-files"), *general, title=t("data.files"))


def _file(t: Strings, f: Formats, name: str, use: str, read: Values | None, problem: str) -> Html:
    short = Path(name).name
    facts: list[str] = []
    if read is not None:
        known = formats().get(read["format"])
        facts = [
            sentence(t, known.title) if known is not None else t("data.format_unknown"),
            t(f"data.container_{read['container']}"),
            read["encoding"].upper(),
            f.size(read["bytes"]),
        ]
    uses = [h("option", t(f"data.use_{one}"), value=one, selected=one == use) for one in ("train", "validate")]
    return h(
        "li",
        h(
            "div",
            h("strong", data_text(short), title=name),
            h("span", " · ".join(facts), class_="soft") if facts else None,
            h("p", sentence(t, problem), class_="hint bad") if problem else None,
            class_="grow",
        ),
        h(
            "select",
            uses,
            data_do="data.use",
            data_value=name,
            data_fresh=f"{name} {use}",
            aria_label=t("data.use", file=short),
        ),
        parts.button(
            t("data.remove"), "data.remove", name, kind="small quiet", title=t("data.remove_file", file=short)
        ),
    )


def figures(t: Strings, f: Formats, found: Values) -> Html:
    """The main figures."""
    report = found["report"]
    items = [
        parts.figure(t("data.used"), f.number(report["used"]), t("data.of_rows", n=f.number(report["rows"]))),
        parts.figure(t("data.rejected_count"), f.number(report["rejected_count"])),
    ]
    if report["tokens"]:
        learned = report["supervised_tokens"]
        items += [
            parts.figure(t("data.tokens"), f.number(report["tokens"])),
            parts.figure(
                t("data.learned"), f.percent(learned / report["tokens"]), t("data.learned_tokens", n=f.number(learned))
            ),
            parts.figure(
                t("data.longest"), f.number(report["longest"]), t("data.at_most", n=f.number(report["max_length"]))
            ),
        ]
    sides = f"{f.number(report['train_rows'])} / {f.number(report['validation_rows'])}"
    items.append(parts.figure(t("data.split"), sides, t("data.split_rows")))
    return parts.figures(*items)


def notes(t: Strings, f: Formats, found: Values, model: str, assistant: object, objective: Objective) -> Html:
    """Notes on the data, each a sentence. `objective` is the one that the run is set up with."""
    report = found["report"]
    shown: list[Html] = []
    better = suggested(found["kinds"])
    better = None if better is None or better.key == objective.key else better
    misfit = not objective.examples.issuperset(found["kinds"])
    told_elsewhere = misfit or found["problems"] or found["unknown"] or (found["named"] and not assistant)
    if found["complete"] and not report["used"] and not told_elsewhere:
        shown.append(h("div", h("strong", t("data.no_rows")), h("p", t("data.no_rows_text")), class_="hint bad"))
    if better is not None or misfit:
        shown.append(_objective_hint(t, found, objective, better))
    if found["model_problem"]:
        shown.append(_model_problem(t, found, model))
    for key, value, kind in (
        ("leaks", report["leaks"], "hint warn"),
        ("duplicates", report["duplicates"], "hint"),
        ("truncated", report["truncated"], "hint"),
    ):
        if value:
            shown.append(h("p", _counted(t, f, f"data.{key}", value), class_=kind))
    for file in (*report["files"], *found["validation"]):
        short = Path(file["name"]).name
        if file["unused"]:
            names = ", ".join(file["unused"][:_UNUSED_SHOWN]) + (" …" if len(file["unused"]) > _UNUSED_SHOWN else "")
            shown.append(h("p", data_text(t("data.unused", file=short, names=names)), class_="hint"))
        if file["encoding"] not in ("utf-8", "utf-8-sig", "utf-16"):
            shown.append(
                h("p", data_text(t("data.read_as", file=short, encoding=file["encoding"])), class_="hint warn")
            )
    if found["complete"] and report["used"] and not report["validation_rows"]:
        shown.append(h("p", t("data.no_validation"), class_="hint"))
    return join(shown)


def _objective_hint(t: Strings, found: Values, objective: Objective, better: Objective | None) -> Html:
    """The objective that is made for this data, with a button that chooses it; a warning if the present one learns nothing."""
    fits = objective.examples.issuperset(found["kinds"])
    text = t("data.objective_better") if fits else t("data.objective_misfit", objective=objective_title(t, objective))
    buttons: list[Html] = []
    if better is not None:
        title = objective_title(t, better)
        text = t("data.objective_suggested", reason=text, title=title, summary=objective_summary(t, better))
        use = t("data.objective_use", objective=title)
        buttons.append(parts.button(use, "data.objective", better.key, kind="small primary"))
    if not fits and found["guess"]:
        buttons.append(parts.button(t("data.preference_use"), "data.use_chosen", kind="small"))
    return h("div", h("p", text), h("div", buttons, class_="row"), class_="hint" if fits else "hint warn")


def _model_problem(t: Strings, found: Values, model: str) -> Html:
    if found["model_missing"]:
        text = t("data.model_missing", model=model)
    else:
        text = f"{t('data.model_problem')} {sentence(t, found['model_problem'])}"
    return h("div", h("p", text), parts.button(t("data.choose_model"), "data.model", kind="small"), class_="hint")


def lengths_card(t: Strings, f: Formats, found: Values) -> Html | None:
    """A histogram of row lengths in tokens, with the maximum length, and the share of learned tokens."""
    report = found["report"]
    bars: Sequence[Values] = report["histogram"]
    if not bars:
        return None
    limit = int(report["max_length"])
    shown = list(bars)
    while shown[-1]["high"] < limit and len(shown) < _BARS:  # extend to the limit if it is near
        shown.append({"low": shown[-1]["high"], "high": shown[-1]["high"] * 2, "rows": 0})
    if shown[-1]["high"] < limit:
        shown = list(bars)
    most = max(bar["rows"] for bar in shown)
    columns = [
        h(
            "div",
            h("span", f.number(bar["rows"]) if bar["rows"] else "", class_="count"),
            h("i", style=f"height:{max(1.5, 100 * bar['rows'] / most):.1f}%") if bar["rows"] else None,
            class_="column",
            title=_counted(
                t, f, "data.lengths_bar", bar["rows"], low=f.number(bar["low"]), high=f.number(bar["high"] - 1)
            ),
        )
        for bar in shown
    ]
    line = None
    if shown[0]["low"] < limit <= shown[-1]["high"]:
        at = _place(limit, shown)
        label = t("data.lengths_limit", n=f.number(limit))
        line = h("div", h("span", label), class_="limit flip" if at > 0.5 else "limit", style=f"left:{100 * at:.2f}%")
    spoken = "; ".join(column for column in (_spoken(t, f, bar) for bar in bars) if column)
    drawing = h(
        "figure",
        h("div", columns, line, class_="bars"),
        h("div", [h("span", f.number(bar["low"])) for bar in shown], class_="axis"),
        h("figcaption", t("data.lengths_axis")),
        role="img",
        aria_label=f"{t('data.lengths_caption')}. {spoken}",
        class_="histogram",
    )
    share = report["supervised_tokens"] / max(1, report["tokens"])
    below = [
        h("div", h("i", style=f"width:{100 * share:.1f}%"), class_="share", aria_hidden="true"),
        h(
            "p",
            t("data.lengths_share", learned=f.percent(share)),
            " ",
            t("data.lengths_median", n=f.number(report["median"])),
            class_="soft",
        ),
    ]
    return parts.card(drawing, *below, title=t("data.lengths"))


def rejected_card(t: Strings, f: Formats, found: Values) -> Html | None:
    """Rejected rows with their reasons; rows of one file with the same reason are grouped."""
    report = found["report"]
    count = report["rejected_count"]
    if not count:
        return None
    kept = report["rejected"]
    lines: dict[tuple[str, str], list[int]] = {}
    for row in kept:
        lines.setdefault((row["file"], row["reason"]), []).append(row["line"])
    rows = [
        (data_text(Path(file).name), _lines(t, f, where), data_text(reason_text(t, reason)))
        for (file, reason), where in list(lines.items())[:REJECTED_SHOWN]
    ]
    headings = (t("data.rejected_file"), t("data.rejected_line"), t("data.rejected_reason"))
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    copied = t("data.rejected_copied_first", n=f.number(len(kept))) if len(kept) < count else None
    copy = h("button", t("data.rejected_copy"), type="button", class_="button small", data_copy=whole, title=copied)
    left = count - sum(len(where) for where in list(lines.values())[:REJECTED_SHOWN])
    more = h("p", t("data.rejected_more", n=f.number(left)), class_="soft") if left else None
    return parts.card(
        h("div", h("h2", t("data.rejected")), copy, class_="row between"),
        h("p", _counted(t, f, "data.rejected_text", count), class_="soft") if report["used"] else None,
        parts.table(headings, rows, caption=t("data.rejected"), class_="data-rejected"),
        more,
    )


def _lines(t: Strings, f: Formats, where: Sequence[int]) -> str:
    shown = ", ".join(f.number(line) for line in where[:_LINES_SHOWN])
    return shown if len(where) <= _LINES_SHOWN else t("data.rejected_lines", lines=shown, n=f.number(len(where)))


def examples_card(t: Strings) -> Html:
    """The formats that are read, each with an example, for a page without data."""
    examples = [(sentence(t, one.title), one.example) for one in formats().values() if one.example]
    examples += [(t(f"data.supported_{name}"), example) for name, example in _FILES.items()]
    rows = [(title, h("code", example, class_="text")) for title, example in examples]
    return parts.card(
        parts.facts(rows),
        h("p", t("data.supported_more"), class_="soft"),
        title=t("data.supported"),
        class_="data-like",
    )


def _counted(t: Strings, f: Formats, key: str, count: int, **more: Any) -> str:
    """A string with a singular form, its number formatted for the locale."""
    return t(key, n=1, **more) if count == 1 else t(key, n=f.number(count), **more)


def _spoken(t: Strings, f: Formats, bar: Values) -> str:
    if not bar["rows"]:
        return ""
    return _counted(t, f, "data.lengths_bar", bar["rows"], low=f.number(bar["low"]), high=f.number(bar["high"] - 1))


def _place(limit: int, bars: Sequence[Values]) -> float:
    """The position of a length along the bars, 0 to 1. Bars double in width, so the scale is logarithmic."""
    for index, bar in enumerate(bars):
        if limit <= bar["high"]:
            low = max(1, bar["low"])
            inside = (
                (math.log2(limit) - math.log2(low)) / (math.log2(bar["high"]) - math.log2(low))
                if bar["low"]
                else limit / bar["high"]
            )
            return (index + min(1.0, max(0.0, inside))) / len(bars)
    return 1.0
