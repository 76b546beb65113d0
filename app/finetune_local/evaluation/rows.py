"""Rows to evaluate on: a conversation whose last answer is the reference, and the ids a model is asked and scored with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from finetune_local.data.conversation import Conversation, Message, Rejected, RowRejected, Source
from finetune_local.system.messages import message_of, msg

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer

Template = Literal["chat", "raw"]

EXAMPLE_END = "\n\n"


@dataclass(frozen=True)
class Row:
    """A question (every turn before the last answer) and the answer that is wanted."""

    prompt: tuple[Message, ...]
    reference: str
    source: Source

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """What makes two rows the same: the texts, not where they stand."""
        return (*((m.role, m.content) for m in self.prompt), ("assistant", self.reference))


@dataclass(frozen=True)
class Asked:
    """A row as a model sees it: the prompt's ids; the ids with the reference, and which of them are scored, (n,) bool."""

    prompt_ids: list[int]
    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    examples: int


def row_of(conversation: Conversation) -> Row | Rejected:
    """The row of a conversation, or why it has none."""
    last = max((i for i, m in enumerate(conversation.messages) if m.role == "assistant"), default=None)
    if last is None:
        what = msg("a plain text") if conversation.text is not None else msg("a conversation without an answer")
        return Rejected(conversation.source, msg("{what}: there is no reference to compare with.", what=what))
    if last == 0:
        return Rejected(conversation.source, msg("the answer has no question before it."))
    reference = conversation.messages[last].content
    if not reference.strip():
        return Rejected(conversation.source, msg("the reference answer is empty."))
    return Row(conversation.messages[:last], reference, conversation.source)


def collect(items: Iterable[Conversation | Rejected], limit: int | None = None) -> tuple[list[Row], list[Rejected]]:
    """The first `limit` rows that can be evaluated, and those set aside among them."""
    rows: list[Row] = []
    rejected: list[Rejected] = []
    for item in items:
        if limit is not None and len(rows) >= limit:
            break
        found = row_of(item) if isinstance(item, Conversation) else item
        if isinstance(found, Row):
            rows.append(found)
        else:
            rejected.append(found)
    return rows, rejected


def ask(
    row: Row, examples: Sequence[Row], tokenizer: Tokenizer, template: Template, context: int, answer_tokens: int
) -> Asked:
    """A row's ids, with as many of the examples before it as leave room for `answer_tokens` in the context.

    Raises RowRejected where the row does not fit even alone, or the template refuses it.
    """
    for first in range(len(examples) + 1):
        shown = examples[first:]
        asked = _encode(row, shown, tokenizer, template)
        if max(len(asked.prompt_ids) + answer_tokens, len(asked.ids)) <= context:
            return asked
    if max(len(asked.prompt_ids) + 1, len(asked.ids)) <= context:
        return asked
    raise RowRejected(
        msg(
            "it has {tokens} tokens, but the model's context is {context}. Shorten it.",
            tokens=len(asked.ids),
            context=context,
        )
    )


def usable(
    rows: Iterable[Row], tokenizer: Tokenizer, template: Template, context: int
) -> tuple[list[Row], list[Rejected]]:
    """Rows that the template takes and that fit into the context, and the others."""
    good: list[Row] = []
    bad: list[Rejected] = []
    for row in rows:
        try:
            ask(row, (), tokenizer, template, context, 1)
            good.append(row)
        except RowRejected as error:
            bad.append(Rejected(row.source, message_of(error)))
    return good, bad


def with_examples(row: Row, examples: Sequence[Row], template: Template) -> tuple[Message, ...]:
    """The question with examples put in front as turns, after its own system prompt; the examples' are left out.

    In raw texts a blank line (EXAMPLE_END) ends each example.
    """
    system = row.prompt[:1] if row.prompt[0].role == "system" else ()
    turns: list[Message] = []
    for example in examples:
        turns += [m for m in example.prompt if m.role != "system"]
        turns.append(Message("assistant", example.reference + (EXAMPLE_END if template == "raw" else "")))
    return (*system, *turns, *row.prompt[len(system) :])


def _encode(row: Row, examples: Sequence[Row], tokenizer: Tokenizer, template: Template) -> Asked:
    from finetune_local.data.encoding.encode import encode, prompt_ids

    asked = tuple(replace(m, train=False) for m in with_examples(row, examples, template))
    conversation = Conversation((*asked, Message("assistant", row.reference)), row.source)
    (encoded,) = encode(conversation, tokenizer, template, max_length=2**30)
    return Asked(prompt_ids(asked, tokenizer, template), encoded.ids, encoded.mask, len(examples))
