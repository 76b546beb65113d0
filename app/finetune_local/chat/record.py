"""Change a conversation: each change is written to its file, then applied. Needs no model, so the window uses it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_local.chat.history import Conversation, Exchange, History
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg


class Record:
    """A conversation and its changes. Without a `history` nothing is saved."""

    def __init__(self, history: History | None = None) -> None:
        """Start a conversation, or continue the one in the file."""
        self.history = history
        self.conversation = history.read() if history is not None else Conversation()

    @property
    def exchanges(self) -> list[Exchange]:
        """Questions with their answers, in order."""
        return self.conversation.exchanges

    def add(self, *lines: Mapping[str, Any]) -> None:
        """Write lines to disk together, then apply them. Raises DiskFull."""
        if self.history is not None:
            self.history.append(*lines)
        for line in lines:
            self.conversation.apply(line)

    def ask(self, text: str, expected: str | None = None) -> None:
        """Add a question. An unanswered question before it is removed, because turns have to alternate."""
        self.add(*self._settled(), *_question(text, expected))

    def edit(self, number: int, text: str) -> None:
        """Change the question of exchange `number` (from 0) and remove everything after it. Raises SpecError."""
        if not 0 <= number < len(self.exchanges) or self.exchanges[number].question is None:
            raise SpecError(msg("there is no question {number} in this conversation. Refresh it.", number=number + 1))
        undone = sum(exchange.question is not None for exchange in self.exchanges[number:])
        expected = self.exchanges[number].expected if self.exchanges[number].question == text else None
        self.add(*[{"undo": "exchange"}] * undone, *_question(text, expected))

    def again(self) -> None:
        """Remove the answers to the last question, so that it can be answered again. Raises SpecError if there is no question."""
        if not self.conversation.turns:
            raise SpecError(msg("there is no answer to regenerate: the conversation is empty."))
        if self.exchanges[-1].answers:
            self.add({"undo": "answer"})

    def undo(self) -> bool:
        """Remove the last question and its answer; False if there is no question."""
        if not any(exchange.question is not None for exchange in self.exchanges):
            return False
        self.add({"undo": "exchange"})
        return True

    def clear(self) -> None:
        """Start over with the same system prompt. The exchanges so far stay in the file."""
        if self.exchanges:
            self.add({"clear": True})

    def choose(self, adapter: str | None) -> None:
        """Continue with the answer of `adapter` (None: the base) to the last question. Raises SpecError."""
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

    def _settled(self) -> list[Mapping[str, Any]]:
        """Lines that must precede the next question: choose the first answer if none is chosen, or remove an unanswered question."""
        if not self.conversation.open:
            return []
        answers = self.exchanges[-1].answers
        return [{"choose": answers[0].adapter} if answers else {"undo": "exchange"}]


def _question(text: str, expected: str | None) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": text}, *([{"expected": expected}] if expected is not None else [])]
