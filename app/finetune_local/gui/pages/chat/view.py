"""Views of a conversation: questions, answers side by side, the answer being generated, errors. All text is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from finetune_local.chat.client import ChatCall, PartialAnswer
from finetune_local.chat.history import Answer, Exchange
from finetune_local.gui.i18n.strings import sentence
from finetune_local.gui.widgets import parts
from finetune_local.gui.widgets.html import Html, h
from finetune_local.system.errors import FinetuneError

if TYPE_CHECKING:
    from finetune_local.gui.i18n.formats import Formats
    from finetune_local.gui.i18n.strings import Strings
    from finetune_local.gui.pages.chat.room import Room

_COLOURS = 6


class ChatView:
    """Draws the views in one language."""

    def __init__(self, t: Strings, f: Formats) -> None:
        self.t, self.f = t, f

    # ── saved answers ──────────────────────────────────────────────────────────────────────────────────────

    def transcript(self, room: Room, call: ChatCall | None, editing: int | None) -> Html:
        """All exchanges on disk."""
        busy = call is not None and not call.ended
        exchanges = room.conversation.exchanges
        last = len(exchanges) - 1
        return h(
            "ol",
            [self._exchange(e, n, n == last, busy, n == editing, call) for n, e in enumerate(exchanges)],
            class_="exchanges",
            aria_label=self.t("chat.transcript"),
        )

    def _exchange(
        self, exchange: Exchange, number: int, last: bool, busy: bool, edited: bool, call: ChatCall | None
    ) -> Html:
        waiting = exchange.chosen is None and not exchange.answers
        answers = [self._answer(answer, n, exchange, last=last, busy=busy) for n, answer in enumerate(exchange.answers)]
        beside = self._expected(exchange.expected)
        if last and busy and exchange.chosen is None:
            answers, beside = [], None  # the view of the streamed answer shows them
        return h(
            "li",
            self._question(exchange.question, number, busy, edited) if exchange.question is not None else None,
            _columns([*answers, beside]) if answers or (beside and not busy) else None,
            self._unanswered() if last and waiting and call is None else None,
            class_="exchange",
        )

    def _question(self, text: str, number: int, busy: bool, edited: bool) -> Html:
        t = self.t
        tools = h(
            "div",
            parts.button(t("chat.edit"), "edit", number, kind="quiet small", disabled=busy),
            self._copy(text),
            class_="tools",
        )
        return h(
            "div",
            h("h2", t("chat.you"), class_="unseen"),
            h("div", text, class_="text"),
            tools,
            class_="question edited" if edited else "question",
        )

    def _answer(self, answer: Answer, number: int, exchange: Exchange, *, last: bool, busy: bool) -> Html:
        t, several = self.t, len(exchange.answers) > 1
        chosen = several and exchange.chosen == number
        tools = [self._copy(answer.content)]
        if last and several and not chosen:
            tools.append(
                parts.button(t("chat.continue_with"), "choose", answer.adapter or "", kind="small", disabled=busy)
            )
        if last and (exchange.chosen == number or (exchange.chosen is None and number == 0)):
            tools.insert(0, parts.button(t("chat.regenerate"), "again", kind="quiet small", disabled=busy))
        return self._column(
            answer.adapter,
            _text(answer.content, several),
            self._facts(answer.facts),
            h("div", *tools, class_="tools"),
            mark=parts.badge(t("chat.chosen"), "good") if chosen and last else None,
            class_="answer chosen" if chosen or not several else "answer beside",
        )

    def _column(self, adapter: str | None, *inside: Any, mark: Html | None, class_: str) -> Html:
        head = h("header", h("h2", adapter or self.t("common.base")), mark)
        return h("article", head, *inside, class_=f"{class_} {_colour(adapter)}")

    def _expected(self, text: str | None) -> Html | None:
        if text is None:
            return None
        head = h("header", h("h2", self.t("chat.expected")))
        note = h("p", self.t("chat.expected_note"), class_="measured")
        return h("article", head, h("div", text, class_="text"), note, class_="answer wanted")

    def _unanswered(self) -> Html:
        label = parts.button(self.t("chat.answer_it"), "again", kind="small")
        return h("div", h("p", self.t("chat.unanswered")), label, class_="hint row between")

    def _copy(self, text: str) -> Html:
        return h("button", self.t("common.copy"), type="button", class_="button quiet small", data_copy=text)

    def _facts(self, facts: Mapping[str, Any]) -> Html | None:
        """Measurements of an answer, and warnings about it."""
        t, f, shown = self.t, self.f, []
        if tokens := facts.get("tokens"):
            shown.append(t("chat.tokens", n=f.number(tokens)))
            if (speed := _speed(facts)) is not None:
                shown.append(t("chat.speed", n=f.number(speed, 1)))
        if facts.get("first_seconds"):
            shown.append(t("chat.first", n=f.number(facts["first_seconds"], 1)))
        if facts.get("swap_ms") is not None:
            shown.append(t("chat.swapped", n=f.number(facts["swap_ms"], 1)))
        warn = []
        if facts.get("stop") == "length":
            warn.append(t("chat.cut"))
        elif facts.get("stop") == "interrupted":
            warn.append(t("chat.stopped"))
        if facts.get("left_out"):
            warn.append(t("chat.left_out", n=f.number(facts["left_out"])))
        if not shown and not warn:
            return None
        return h("p", " · ".join(shown), [h("span", text, class_="warn") for text in warn], class_="measured")

    # ── streamed answers ───────────────────────────────────────────────────────────────────────────────────

    def live(self, call: ChatCall | None, expected: str | None, *, alone: bool = True) -> Html:
        """The answer being generated, or its error. `alone`: no other conversation is being answered."""
        if call is None or call.procedure != "answer":
            return Html("")
        if call.ended:
            return self._failed(call.error) if call.error is not None else Html("")
        columns = [self._partial(name, partial, call, alone) for name, partial in call.answers.items()]
        notes = [h("p", sentence(self.t, text), class_="hint") for text in call.notes]
        return h("div", *notes, _columns([*columns, self._expected(expected)]), class_="exchange", aria_busy="true")

    def _partial(self, name: str | None, partial: PartialAnswer, call: ChatCall, alone: bool) -> Html:
        t, f = self.t, self.f
        if partial.turn is not None:
            under: Html | None = self._facts(partial.turn)
        elif partial.tokens > 1 and partial.seconds > 0:
            speed = (partial.tokens - 1) / partial.seconds
            shown = [t("chat.tokens", n=f.number(partial.tokens)), t("chat.speed", n=f.number(speed, 1))]
            under = h("p", " · ".join(shown), class_="measured")
        else:
            under = h("p", self._doing(partial, call, alone), class_="measured")
        text = _text(partial.text, len(call.answers) > 1, "" if partial.turn else "growing", f"live {name}")
        return self._column(name, text, under, mark=None, class_="answer")

    def _doing(self, partial: PartialAnswer, call: ChatCall, alone: bool) -> str:
        if partial.begun:
            return self.t("chat.reading")
        if call.phase == "waiting":
            return self.t("chat.starting") if alone else self.t("chat.waiting")
        if call.phase == "loading":
            return self.t("chat.loading")
        return self.t("chat.in_turn")

    def _failed(self, error: Exception) -> Html:
        t = self.t
        again = parts.button(t("chat.try_again"), "again", kind="small primary")
        if isinstance(error, FinetuneError):
            title = t.get(f"errors.{error.code}") or t("errors.UserError")
            lines = [h("p", line) for line in sentence(t, error).splitlines()]
            inside = h("div", h("strong", title), *lines, class_="grow")
            return h("div", inside, again, class_="hint bad failed row", role="alert")
        return h("div", parts.defect_notice(t, str(error)), again, class_="failed")


def _speed(facts: Mapping[str, Any]) -> float | None:
    """Tokens per second, excluding the time to process the prompt."""
    tokens, seconds = int(facts.get("tokens") or 0), float(facts.get("seconds") or 0)
    first = float(facts.get("first_seconds") or 0)
    if tokens > 1 and 0 < first < seconds:
        return (tokens - 1) / (seconds - first)
    return tokens / seconds if tokens and seconds else None


def _text(text: str, several: bool, more: str = "", growing: str | None = None) -> Html:
    """An answer's text. Side by side, long answers scroll separately; a growing one scrolls to its end (app.js)."""
    return h(
        "div",
        text,
        class_=f"text {more}".strip(),
        tabindex="0" if several else None,
        data_scroll=growing if several else None,
        data_end="" if several and growing is not None else None,
    )


def _columns(items: Sequence[Html | None]) -> Html:
    shown = [item for item in items if item is not None]
    return h("div", *shown, class_=f"answers of{len(shown)}")


def _colour(adapter: str | None) -> str:
    """The colour of an answering model, the same everywhere."""
    return "c6" if adapter is None else f"c{sum(adapter.encode()) % (_COLOURS - 1) + 1}"
