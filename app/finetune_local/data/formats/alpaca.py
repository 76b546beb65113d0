"""Alpaca: {"instruction": "...", "input": "...", "output": "..."}, with optional "system" and "history"."""

from __future__ import annotations

from finetune_local.data.conversation import Conversation, Message, RowRejected, Source
from finetune_local.data.formats import Row
from finetune_local.data.turns import text_of, with_system
from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.messages import msg


class Alpaca:
    """The prompt is the instruction and, after a blank line, the input; history is a list of [question, answer]."""

    key = "alpaca"
    kind: ExampleKind = "conversation"
    title = msg("Alpaca instructions")
    example = '{"instruction", "input", "output"}'
    order = 12
    keys = frozenset({"instruction", "input", "output", "response", "system", "history"})

    def recognises(self, row: Row) -> bool:
        """Rows with "instruction" and "output" (or "response")."""
        return "instruction" in row and ("output" in row or "response" in row)

    def read(self, row: Row, source: Source) -> Conversation:
        """Read one row."""
        answer = "output" if "output" in row else "response"
        question = text_of(row.get("instruction"), "'instruction'")
        if row.get("input") not in (None, ""):
            extra = text_of(row["input"], "'input'", empty=True)
            question = f"{question}\n\n{extra}" if extra.strip() else question
        messages = [
            *_history(row.get("history")),
            Message("user", question),
            Message("assistant", text_of(row.get(answer), f"'{answer}'")),
        ]
        return Conversation(with_system(messages, row), source)


def _history(value: object) -> list[Message]:
    if value in (None, "", []):
        return []
    if not isinstance(value, list):
        raise RowRejected(msg("'history' is not a list of [question, answer]."))
    messages = []
    for number, pair in enumerate(value, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowRejected(msg("item {number} of 'history' is not a pair of question and answer.", number=number))
        messages.append(Message("user", text_of(pair[0], msg("question {number} of 'history'", number=number))))
        messages.append(Message("assistant", text_of(pair[1], msg("answer {number} of 'history'", number=number))))
    return messages


FORMAT = Alpaca()
