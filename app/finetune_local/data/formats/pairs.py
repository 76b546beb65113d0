"""Preference pairs: a prompt, the "chosen" answer and the "rejected" one.

The prompt is a text ({"prompt": "..."}), a list of messages ("prompt", "messages" or ShareGPT's "conversations"), or stands at the
beginning of both answers, which are then whole conversations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from finetune_local.data.conversation import Conversation, Message, RowRejected, Source
from finetune_local.data.formats import Row
from finetune_local.data.turns import text_of, turns, with_system
from finetune_local.spec.objectives import ExampleKind
from finetune_local.system.messages import msg

PROMPTS = ("prompt", "conversations", "messages", "question", "query", "instruction")


class Pairs:
    """An answer is a text, a message, or a list that ends with it."""

    key = "pairs"
    kind: ExampleKind = "pair"
    title = msg("Preference pairs")
    example = '{"prompt", "chosen", "rejected"}'
    order = -1
    keys = frozenset({*PROMPTS, "input", "chosen", "rejected", "system", "tools"})

    def recognises(self, row: Row) -> bool:
        """Rows with "chosen" and "rejected"."""
        return "chosen" in row and "rejected" in row

    def read(self, row: Row, source: Source) -> Conversation:
        """Read one row."""
        chosen, rejected = _ending(row, "chosen"), _ending(row, "rejected")
        whole = len(chosen) > 1 or len(rejected) > 1
        prompt = chosen[:-1] if whole else _prompt(row)
        if whole and [(m.role, m.content) for m in prompt] != [(m.role, m.content) for m in rejected[:-1]]:
            raise RowRejected(
                msg(
                    "its chosen and rejected conversations differ before the last answer; they should share the prompt."
                )
            )
        if chosen[-1].content == rejected[-1].content:
            raise RowRejected(msg("its chosen and rejected answers are the same, so nothing can be learned from them."))
        context = [replace(message, train=False) if message.role == "assistant" else message for message in prompt]
        messages = with_system([*context, replace(chosen[-1], train=True)], row)
        return Conversation(messages, source, rejected=replace(rejected[-1], train=True))


def _ending(row: Row, key: str) -> list[Message]:
    """The answer, after the turns before it if they are stored with it."""
    value = row.get(key)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str):
        return [Message("assistant", text_of(value, f"'{key}'"))]
    found = turns(value, key)
    if found[-1].role != "assistant":
        raise RowRejected(msg("'{key}' does not end with an answer of the assistant.", key=key))
    return found


def _prompt(row: Row) -> list[Message]:
    key = next((name for name in PROMPTS if row.get(name) not in (None, "", [])), None)
    if key is None:
        raise RowRejected(msg("it has none of the keys {keys}.", keys=", ".join(PROMPTS)))
    value = row[key]
    if not isinstance(value, str):
        return turns(value, key)
    text = text_of(value, f"'{key}'")
    if key == "instruction" and row.get("input") not in (None, ""):
        extra = text_of(row["input"], "'input'", empty=True)
        text = f"{text}\n\n{extra}" if extra.strip() else text
    return [Message("user", text)]


FORMAT = Pairs()
