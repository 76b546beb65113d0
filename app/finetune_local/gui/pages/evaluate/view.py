"""Views of an evaluation: verdict, scores, rows, earlier evaluations, and the blind vote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_local.evaluation.compare import Interval
from finetune_local.evaluation.metrics import DEFAULT, Metric, metrics
from finetune_local.evaluation.store import WHICH, Saved, SavedAnswer, Which, chosen, counts
from finetune_local.evaluation.votes import Ballot, Other, Pair, Side, Tally
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings, sentence
from finetune_local.gui.widgets import lists, parts
from finetune_local.gui.widgets.html import Child, Html, h
from finetune_local.gui.widgets.measures import metric_short, value_text

ROWS = 8
"""Rows per page; each is a question with up to four answers."""

Values = Mapping[str, Any]
KEYS: dict[Side, str] = {"a": "1", "b": "2", "tie": "0", "skip": "s"}


def result(t: Strings, f: Formats, saved: Saved) -> Html:
    """The verdict and the scores."""
    found = saved.result
    sentences = [sentence(t, text) for text in found["verdict"]["sentences"]]
    seconds = sum((found.get("seconds") or {}).values())
    facts = [
        found["adapter"] or found["model"],
        t("evaluate.made", n=f.number(found["rows"])),
        f.moment(saved.created),
        t("evaluate.took", span=f.about(seconds)) if seconds else "",
        t("evaluate.examples_from", origin=sentence(t, found["examples_origin"])) if found["examples"] else "",
        t("evaluate.rejected", n=f.number(found["set_aside"])) if found["set_aside"] else "",
    ]
    votable = "tuned" in saved.conditions()
    return parts.card(
        h("p", sentences[0], class_=f"verdict {_mood(found)}", tabindex="-1", data_top=saved.name),
        [h("p", text) for text in sentences[1:]],
        _scores(t, f, saved),
        h("p", t("evaluate.table_note"), class_="soft"),
        h("p", " · ".join(fact for fact in facts if fact), class_="soft"),
        h("div", parts.button(t("evaluate.vote"), "vote.open"), class_="row") if votable else None,
        title=t("evaluate.result"),
        class_="evaluation",
    )


def condition_name(t: Strings, f: Formats, found: Values, condition: str) -> str:
    """The name of a condition."""
    if condition == "few_shot":
        return t("evaluate.few_shot_name", n=f.number(found["examples"]))
    return t(f"evaluate.{condition}")


def _mood(found: Values) -> str:
    gain = found["verdict"]["over_base"]
    if gain is None:
        return ""
    return "good" if gain["low"] > 0 else "bad" if gain["high"] < 0 else ""


def _scores(t: Strings, f: Formats, saved: Saved) -> Html:
    conditions, shown = saved.conditions(), saved.metrics()
    measured = {name: saved.intervals(name) for name in conditions}
    headings = [t("evaluate.condition"), *(metric_short(t, metric) for metric in shown)]
    rows = []
    for name in conditions:
        cells: list[Child] = [h("strong", condition_name(t, f, saved.result, name))]
        for metric in shown:
            largest = max(values[metric.key].high for values in measured.values()) if metric.is_loss else 1.0
            cells.append(_measure(f, metric, measured[name][metric.key], largest or 1.0))
        rows.append(cells)
    return parts.table(headings, rows, caption=t("evaluate.table"), class_="scores")


def _measure(f: Formats, metric: Metric, value: Interval, most: float) -> Html:
    """A mean with its interval, as numbers and as a bar."""
    mean, low, high = (value_text(f, metric, one) for one in (value.mean, value.low, value.high))
    return h(
        "div",
        h("b", mean),
        h("small", f"{low} – {high}"),
        interval(value.low, value.mean, value.high, most),
        class_="measure",
    )


def interval(low: float, mean: float, high: float, most: float) -> Html:
    """A bar from low to high with a mark at the mean, on a scale from 0 to `most`."""

    def at(value: float) -> float:
        return 100 * min(1.0, max(0.0, value / most))

    return h(
        "span",
        h("i", style=f"left:{at(low):.1f}%;width:{max(0.6, at(high) - at(low)):.1f}%"),
        h("b", style=f"left:{at(mean):.1f}%"),
        class_="interval",
        aria_hidden="true",
    )


def rows(t: Strings, f: Formats, saved: Saved, which: Which, metric: Metric, page: int) -> Html:
    """One page of the rows: better, worse, or all."""
    found = counts(saved, metric)
    tuned = "tuned" in saved.conditions()
    which = which if tuned else "all"
    numbers = chosen(saved, metric, which)
    last = max(0, (len(numbers) - 1) // ROWS)
    page = min(max(0, page), last)
    shown = numbers[page * ROWS : (page + 1) * ROWS]
    choice = lists.segmented(
        "rows.which",
        [(key, t(f"evaluate.which_{key}", n=f.number(found[key]))) for key in WHICH],
        which,
        t("evaluate.which"),
    )
    measures = lists.segmented(
        "rows.metric",
        [(one.key, metric_short(t, one)) for one in saved.metrics()],
        metric.key,
        t("evaluate.metric"),
    )
    nothing = h("p", t(f"evaluate.none_{which}"), class_="soft") if not shown and which != "all" else None
    return parts.card(
        h("div", choice, measures, class_="row tools") if tuned else None,
        nothing,
        [_row(t, f, saved, number) for number in shown],
        _pager(t, f, page, len(numbers)),
        title=t("evaluate.differ"),
        class_="row-list",
    )


def _row(t: Strings, f: Formats, saved: Saved, number: int) -> Html:
    row = saved.rows[number]
    *before, (_, question) = row.prompt
    earlier = (
        h(
            "details",
            h("summary", t("evaluate.earlier_turns")),
            turns(t, before),
            data_keep=f"{saved.name} {number}",
        )
        if before
        else None
    )
    answers = [
        h(
            "div",
            h(
                "h4",
                condition_name(t, f, saved.result, name),
                parts.badge(t("evaluate.correct"), "good")
                if answer.values.get(DEFAULT)
                else parts.badge(t("evaluate.incorrect")),
            ),
            answer_text(t, answer.text),
            h("small", _row_scores(t, f, saved, answer)),
            class_=f"eval-answer {name}",
        )
        for name, answer in row.answers.items()
    ]
    expected = h("div", h("h4", t("evaluate.expected")), answer_text(t, row.reference), class_="eval-answer wanted")
    return h(
        "article",
        h("p", question, class_="asked text"),
        earlier,
        h("div", expected, answers, class_="answer-grid"),
        h(
            "small",
            t("evaluate.source", file=row.file.replace("\\", "/").rpartition("/")[2], line=f.number(row.line)),
        ),
        class_="eval-row",
    )


def _row_scores(t: Strings, f: Formats, saved: Saved, answer: SavedAnswer) -> str:
    """The scores of one answer, except correctness."""
    shown = [metric for metric in saved.metrics() if metric.key != DEFAULT]
    return " · ".join(
        f"{metric_short(t, metric)} {f.number(answer.values[metric.key], 3 if metric.is_loss else 2)}"
        for metric in shown
    )


def turns(t: Strings, earlier: Sequence[tuple[str, str]]) -> Html:
    """The turns of a conversation with their roles."""
    return h(
        "dl",
        [(h("dt", t(f"evaluate.role_{role}")), h("dd", content, class_="text")) for role, content in earlier],
        class_="facts",
    )


def answer_text(t: Strings, text: str) -> Html:
    """An answer's text; an empty one is marked as such."""
    return h("p", text, class_="text") if text.strip() else h("p", t("evaluate.empty_answer"), class_="soft")


def _pager(t: Strings, f: Formats, page: int, count: int) -> Html | None:
    if count <= ROWS:
        return None
    first, last = page * ROWS + 1, min(count, (page + 1) * ROWS)
    return h(
        "nav",
        parts.button(t("lists.before"), "rows.page", page - 1, kind="small", disabled=page == 0),
        h("span", t("lists.shown", first=f.number(first), last=f.number(last), n=f.number(count)), class_="soft"),
        parts.button(t("lists.after"), "rows.page", page + 1, kind="small", disabled=last >= count),
        class_="pager",
        aria_label=t("lists.pages"),
    )


def earlier(t: Strings, f: Formats, all_saved: Sequence[Saved], shown: str) -> Html:
    """The saved evaluations, newest first."""
    body = []
    for saved in all_saved:
        found = saved.result
        metric = metrics()[found["metric"]]
        scores = [
            value_text(f, metric, saved.intervals(name)[metric.key].mean)
            for name in ("base", "tuned")
            if name in saved.conditions()
        ]
        here = parts.badge(t("evaluate.shown"), "live") if saved.name == shown else None
        body.append(
            [
                h("button", found["adapter"] or found["model"], type="button", class_="row-name", data_do="earlier.show", data_value=saved.name),
                f.moment(saved.created),
                (f.number(found["rows"]), "number"),
                metric_short(t, metric),
                (" → ".join(scores), "number"),
                (h("div", here, parts.button(t("common.delete"), "earlier.remove", saved.name, kind="quiet small danger"), class_="row end"), "actions"),
            ]
        )  # fmt: skip
    headings = (
        t("evaluate.adapter"),
        t("evaluate.earlier_when"),
        t("evaluate.rows_number"),
        t("evaluate.metric"),
        t("evaluate.earlier_score"),
        h("span", t("common.details"), class_="unseen"),
    )
    return parts.card(parts.table(headings, body, caption=t("evaluate.earlier")), title=t("evaluate.earlier"))


def against(saved: Saved, requested: object) -> Other:
    """The condition to compare with: the requested one if the evaluation has it, else the base."""
    return "few_shot" if requested == "few_shot" and "few_shot" in saved.conditions() else "base"


def vote(t: Strings, f: Formats, saved: Saved, ballot: Ballot, revealed: bool) -> Html:
    """The vote: a question with two answers, or the count."""
    waiting, total = ballot.waiting(), len(ballot.pairs)
    done = total - len(waiting)
    others = [name for name in ("base", "few_shot") if name in saved.conditions()]
    choice = lists.segmented(
        "vote.against",
        [(name, condition_name(t, f, saved.result, name)) for name in others],
        ballot.against,
        t("evaluate.vote_against"),
    )
    body: Child
    if not total:
        body = h("p", t("evaluate.vote_none"), class_="soft")
    elif waiting:
        body = _pair(t, f, waiting[0], done + 1, total)
    else:
        body = h("p", t("evaluate.vote_done"), class_="verdict")
    reveal = revealed or not waiting
    undo = parts.button(t("evaluate.vote_undo"), "vote.undo", kind="small", disabled=not ballot.votes(), press="u")
    show = (
        parts.button(t("evaluate.vote_hide" if revealed else "evaluate.vote_reveal"), "vote.reveal", kind="small")
        if waiting
        else None
    )
    return h(
        "div",
        parts.button(f"← {t('evaluate.vote_back')}", "vote.close", kind="quiet small back"),
        parts.header(t("evaluate.vote_title"), t("evaluate.vote_lead"), choice if len(others) > 1 else None),
        body,
        h("div", undo, show, class_="row") if total else None,
        _count(t, f, ballot) if reveal and total else None,
        h("p", t("evaluate.vote_equal", n=f.number(ballot.equal)), class_="soft") if ballot.equal and total else None,
        class_="stack vote",
    )


def _pair(t: Strings, f: Formats, pair: Pair, number: int, total: int) -> Html:
    *before, (_, question) = pair.prompt
    answers = [
        h(
            "section",
            h("h2", t("evaluate.vote_answer", side=side.upper())),
            answer_text(t, text),
            _button(t, side, pair, kind="primary"),
            class_="card",
        )
        for side, text in (("a", pair.a), ("b", pair.b))
    ]
    return h(
        "div",
        parts.progress(
            t, f, t("evaluate.vote_number", n=f.number(number), total=f.number(total)), (number - 1) / total
        ),
        parts.card(
            h("details", h("summary", t("evaluate.earlier_turns")), turns(t, before)) if before else None,
            h("p", question, class_="asked text", tabindex="-1", data_top=f"vote {pair.row}"),
            title=t("evaluate.question"),
        ),
        h("div", answers, class_="pair"),
        h("div", _button(t, "tie", pair), _button(t, "skip", pair, kind="quiet"), class_="row center"),
        h("p", t("evaluate.vote_keys"), class_="soft center"),
        class_="stack",
    )


def _button(t: Strings, side: str, pair: Pair, kind: str = "") -> Html:
    """A vote button. It names the pair, so that a double press does not also vote on the next pair."""
    label = t(f"evaluate.vote_{side}")
    return parts.button(
        [label, " ", h("kbd", KEYS[side].upper(), aria_hidden="true")],  # type: ignore[index]
        "vote.cast",
        side,
        kind=kind,
        row=pair.row,
        press=KEYS[side],  # type: ignore[index]
    )


def _count(t: Strings, f: Formats, ballot: Ballot) -> Html:
    tally: Tally = ballot.tally()
    figures: Sequence[Html] = [
        parts.figure(t("evaluate.vote_tuned"), f.number(tally.tuned)),
        parts.figure(t(f"evaluate.vote_{ballot.against}"), f.number(tally.other)),
        parts.figure(t("evaluate.vote_ties"), f.number(tally.ties)),
        parts.figure(t("evaluate.vote_skipped"), f.number(tally.skipped)),
    ]
    share = None
    if tally.share is not None:
        share = h(
            "div",
            h("span", t("evaluate.vote_share")),
            h("b", f.percent(tally.share)),
            h("small", t("evaluate.vote_interval", low=f.percent(tally.low), high=f.percent(tally.high))),
            interval(tally.low, tally.share, tally.high, 1.0),
            class_="measure wide",
        )
    return parts.card(
        h("p", sentence(t, tally.text), class_="verdict"),
        parts.figures(*figures),
        share,
        title=t("evaluate.result"),
        role="status",
    )
