"""The blind vote as it is shown: one question with two answers at a time, and the count when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_local.evaluation.store import Saved
from finetune_local.evaluation.votes import Ballot, Other, Pair, Side, Tally
from finetune_local.gui.i18n.formats import Formats
from finetune_local.gui.i18n.strings import Strings
from finetune_local.gui.i18n.translate import sentence
from finetune_local.gui.pages.evaluate import view as evaluateview
from finetune_local.gui.widgets import lists, parts
from finetune_local.gui.widgets.html import Child, Html, h

KEYS: dict[Side, str] = {"a": "1", "b": "2", "tie": "0", "skip": "s"}


def against(saved: Saved, wanted: object) -> Other:
    """What the fine-tuned model stands against: as wanted, else the base."""
    return "few_shot" if wanted == "few_shot" and "few_shot" in saved.conditions() else "base"


def page(t: Strings, f: Formats, saved: Saved, ballot: Ballot, revealed: bool) -> Html:
    """The whole vote."""
    waiting, total = ballot.waiting(), len(ballot.pairs)
    done = total - len(waiting)
    others = [name for name in ("base", "few_shot") if name in saved.conditions()]
    choice = lists.segmented(
        "vote.against",
        [(name, evaluateview.condition_name(t, f, saved.result, name)) for name in others],
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
    *before, (_, asked) = pair.prompt
    answers = [
        h(
            "section",
            h("h2", t("evaluate.vote_answer", side=side.upper())),
            evaluateview.said(t, text),
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
            h("details", h("summary", t("evaluate.earlier_turns")), evaluateview.turns(t, before)) if before else None,
            h("p", asked, class_="asked text", tabindex="-1", data_top=f"vote {pair.row}"),
            title=t("evaluate.question"),
        ),
        h("div", answers, class_="pair"),
        h("div", _button(t, "tie", pair), _button(t, "skip", pair, kind="quiet"), class_="row center"),
        h("p", t("evaluate.vote_keys"), class_="soft center"),
        class_="stack",
    )


def _button(t: Strings, side: str, pair: Pair, kind: str = "") -> Html:
    """A vote; it names the pair, so that a second press while the next one comes does not count for that one."""
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
            evaluateview.interval(tally.low, tally.share, tally.high, 1.0),
            class_="measure wide",
        )
    return parts.card(
        h("p", sentence(t, tally.text), class_="verdict"),
        parts.figures(*figures),
        share,
        title=t("evaluate.result"),
        role="status",
    )
