"""A conversation with its file: everything that changes one is a line on disk first. Needs no model, so the window does it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_local.chat.history import Conversation, Exchange, History
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg


class Record:
    """What was said, and what can be done to it. Without a `history` nothing is kept."""

    def __init__(self, history: History | None = None) -> None:
        """Begin, or go on where the file ends."""
        self.history = history
        self.conversation = history.read() if history is not None else Conversation()

    @property
    def exchanges(self) -> list[Exchange]:
        """Questions with their answers, in order."""
        return self.conversation.exchanges

    def add(self, *lines: Mapping[str, Any]) -> None:
        """Let lines happen, on disk first and together. Raises DiskFull."""
        if self.history is not None:
            self.history.append(*lines)
        for line in lines:
            self.conversation.apply(line)

    def ask(self, text: str, expected: str | None = None) -> None:
        """Put a question. One before it that never got its answer is taken back: turns have to alternate."""
        self.add(*self._settled(), *_question(text, expected))

    def edit(self, number: int, text: str) -> None:
        """Put the question of exchange `number` (from 0) otherwise; what followed it is taken back. Raises SpecError."""
        if not 0 <= number < len(self.exchanges) or self.exchanges[number].question is None:
            raise SpecError(
                msg("there is no question {number} in this conversation. Show it again.", number=number + 1)
            )
        undone = sum(exchange.question is not None for exchange in self.exchanges[number:])
        expected = self.exchanges[number].expected if self.exchanges[number].question == text else None
        self.add(*[{"undo": "exchange"}] * undone, *_question(text, expected))

    def again(self) -> None:
        """Take back the answers to the last question, so that it waits for others. Raises SpecError where nothing was asked."""
        if not self.conversation.turns:
            raise SpecError(msg("there is nothing to answer again: nothing was said yet."))
        if self.exchanges[-1].answers:
            self.add({"undo": "answer"})

    def undo(self) -> bool:
        """Take back the last question and its answer; False where there is none."""
        if not any(exchange.question is not None for exchange in self.exchanges):
            return False
        self.add({"undo": "exchange"})
        return True

    def clear(self) -> None:
        """Begin anew, with the same system prompt. What was said stays in the file."""
        if self.exchanges:
            self.add({"clear": True})

    def choose(self, adapter: str | None) -> None:
        """Go on with the answer that an adapter (None: the base) gave to the last question. Raises SpecError."""
        if not self.exchanges or all(answer.adapter != adapter for answer in self.exchanges[-1].answers):
            raise SpecError(
                msg(
                    "'{name}' has not answered the last question. Choose one of the answers shown.",
                    name=adapter or "base",
                )
            )
        self.add({"choose": adapter})

    def set_system(self, text: str) -> None:
        """Replace the system prompt; "" removes it."""
        if (text or None) != self.conversation.system:
            self.add({"role": "system", "content": text})

    def _settled(self) -> list[dict[str, Any]]:
        """What has to happen before the next question: of answers of which none was chosen the first is, a bare question goes."""
        if not self.conversation.open:
            return []
        answers = self.exchanges[-1].answers
        return [{"choose": answers[0].adapter} if answers else {"undo": "exchange"}]


def _question(text: str, expected: str | None) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, *([{"expected": expected}] if expected is not None else [])]
