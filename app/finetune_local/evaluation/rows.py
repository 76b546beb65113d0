"""Rows to evaluate on: conversations whose last answer is the reference, and their ids for a model.

Also the examples of the few-shot base (the base with k solved rows in its prompt), and suggestions for a chat. Examples come from a
file that the user names, else from the adapter's training data, else from the evaluated rows, which are then not scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from finetune_local.adapters.library import run_folder, run_tables
from finetune_local.data.conversation import Conversation, Message, Rejected, RowRejected, Source
from finetune_local.data.dataset.prepare import CONVERSATIONS, conversations
from finetune_local.system.errors import DataError, SpecError
from finetune_local.system.files import stamp
from finetune_local.system.messages import message_of, msg

if TYPE_CHECKING:
    from finetune_local.data.tokenizers.tokenizer import Tokenizer


Template = Literal["chat", "raw"]

EXAMPLE_END = "\n\n"

POOL = 2000
"""Examples are drawn from this many rows at the start of a file."""
MOST_SUGGESTED = 60
"""The most rows of a run that are suggested as questions."""


@dataclass(frozen=True)
class Row:
    """A question (every turn before the last answer) and its reference answer."""

    prompt: tuple[Message, ...]
    reference: str
    source: Source

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """Equal for rows with the same texts, whatever their source."""
        return (*((m.role, m.content) for m in self.prompt), ("assistant", self.reference))


@dataclass(frozen=True)
class EncodedRow:
    """A row as ids.

    `prompt_ids` end where the answer begins. `ids` (n,) are the prompt with the reference, and `mask` (n,) marks those that are
    scored. `examples` is the number of examples in the prompt.
    """

    prompt_ids: list[int]
    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    examples: int


def row_of(conversation: Conversation) -> Row | Rejected:
    """The row of a conversation, or why it has no reference to compare with."""
    last = max((i for i, m in enumerate(conversation.messages) if m.role == "assistant"), default=None)
    if last is None:
        what = msg("a plain text") if conversation.text is not None else msg("a conversation without an answer")
        return Rejected(conversation.source, msg("{what}: there is no reference answer to compare with.", what=what))
    if last == 0:
        return Rejected(conversation.source, msg("the answer has no question before it."))
    reference = conversation.messages[last].content
    if not reference.strip():
        return Rejected(conversation.source, msg("the reference answer is empty."))
    return Row(conversation.messages[:last], reference, conversation.source)


def collect(items: Iterable[Conversation | Rejected], limit: int | None = None) -> tuple[list[Row], list[Rejected]]:
    """The first `limit` rows that can be evaluated, and those rejected on the way."""
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


def encode_row(
    row: Row, examples: Sequence[Row], tokenizer: Tokenizer, template: Template, context: int, answer_tokens: int
) -> EncodedRow:
    """Encode a row with as many examples as leave space for `answer_tokens` in the context; the first examples are dropped first.

    Raises RowRejected if the row does not fit even without examples, or the template rejects it.
    """
    for first in range(len(examples) + 1):
        shown = examples[first:]
        encoded = _encode(row, shown, tokenizer, template)
        if max(len(encoded.prompt_ids) + answer_tokens, len(encoded.ids)) <= context:
            return encoded
    if max(len(encoded.prompt_ids) + 1, len(encoded.ids)) <= context:
        return encoded
    raise RowRejected(
        msg(
            "it has {tokens} tokens, but the model's context is {context}. Shorten it.",
            tokens=len(encoded.ids),
            context=context,
        )
    )


def usable(
    rows: Iterable[Row], tokenizer: Tokenizer, template: Template, context: int
) -> tuple[list[Row], list[Rejected]]:
    """Split rows into those that the template accepts and that fit into the context, and the rejected ones."""
    good: list[Row] = []
    bad: list[Rejected] = []
    for row in rows:
        try:
            encode_row(row, (), tokenizer, template, context, 1)
            good.append(row)
        except RowRejected as error:
            bad.append(Rejected(row.source, message_of(error)))
    return good, bad


def with_examples(row: Row, examples: Sequence[Row], template: Template) -> tuple[Message, ...]:
    """The prompt of a row with examples as earlier turns. Only the row's system prompt is kept, not those of the examples.

    In raw texts each example ends with a blank line (EXAMPLE_END).
    """
    system = row.prompt[:1] if row.prompt[0].role == "system" else ()
    turns: list[Message] = []
    for example in examples:
        turns += [m for m in example.prompt if m.role != "system"]
        turns.append(Message("assistant", example.reference + (EXAMPLE_END if template == "raw" else "")))
    return (*system, *turns, *row.prompt[len(system) :])


def _encode(row: Row, examples: Sequence[Row], tokenizer: Tokenizer, template: Template) -> EncodedRow:
    from finetune_local.data.encoding.encode import encode, prompt_ids

    prompt = tuple(replace(m, train=False) for m in with_examples(row, examples, template))
    conversation = Conversation((*prompt, Message("assistant", row.reference)), row.source)
    (encoded,) = encode(conversation, tokenizer, template, max_length=2**30)
    return EncodedRow(prompt_ids(prompt, tokenizer, template), encoded.ids, encoded.mask, len(examples))


@dataclass(frozen=True)
class Examples:
    """The examples, the rows to score, and a phrase for the examples' source."""

    shown: list[Row]
    scored: list[Row]
    origin: str


def draw(rows: Sequence[Row], count: int, seed: int, file: Path | None, adapter: Path | None) -> Examples:
    """Draw `count` examples that are not among the scored rows; deterministic given the seed. Raises SpecError, DataError."""
    from finetune_local.data.readers.read import read, reading

    if count == 0:
        return Examples([], list(rows), "")
    data = run_tables(adapter).get("data", {}) if adapter is not None else {}
    settings = reading(data)
    if file is not None:
        shown = _draw(_unseen(read([file], settings), rows), count, seed)
        if len(shown) < count:
            raise SpecError(
                msg(
                    "--examples {file}: only {rows} usable rows that are not evaluated themselves, but --few-shot is "
                    "{number}. Lower it or give a larger file.",
                    file=file,
                    rows=len(shown),
                    number=count,
                )
            )
        return Examples(shown, list(rows), msg("drawn from {file}", file=file))
    if adapter is not None:
        files = [Path(name) for name in data.get("files", ()) if Path(name).is_file()]
        if files:
            shown = _draw(_unseen(read(files, settings), rows), count, seed)
            if len(shown) == count:
                return Examples(shown, list(rows), msg("drawn from the data the adapter was trained on"))
    if len(rows) <= count:
        raise SpecError(
            msg(
                "--few-shot {number}: the data has {rows} rows, and examples are not scored. Give more rows, a lower "
                "number (0 turns it off), or --examples FILE.",
                number=count,
                rows=len(rows),
            )
        )
    picked = sorted(int(i) for i in np.random.default_rng(seed).choice(len(rows), count, replace=False))
    scored = [row for i, row in enumerate(rows) if i not in picked]
    return Examples(
        [rows[i] for i in picked], scored, msg("{number} rows of the data itself, which are not scored", number=count)
    )


def _unseen(items: Iterable[Conversation | Rejected], scored: Sequence[Row]) -> list[Row]:
    known = {row.key for row in scored}
    pool, _ = collect(items, POOL)
    return [row for row in pool if row.key not in known]


def _draw(pool: Sequence[Row], count: int, seed: int) -> list[Row]:
    chosen = np.random.default_rng(seed).permutation(len(pool))[:count]
    return [pool[int(i)] for i in chosen]


@dataclass(frozen=True)
class Example:
    """A held-out question, suggested in a chat: with its system prompt ("" for none) and its reference answer."""

    question: str
    system: str
    reference: str


def examples(adapter: Path) -> tuple[Example, ...]:
    """Held-out questions of the run that produced an adapter; empty if there is no run or its rows are not single questions."""
    run = run_folder(adapter)
    data = run / "data" if run is not None else None
    return () if data is None else _suggestions(data, stamp(data, CONVERSATIONS))


@lru_cache(maxsize=16)
def _suggestions(data: Path, _stamp: object) -> tuple[Example, ...]:
    try:
        rows, _ = collect(conversations(data, limit=MOST_SUGGESTED))
    except (DataError, OSError):
        return ()  # these are suggestions: a damaged file must not stop a chat
    found = []
    for row in rows:
        turns = [message for message in row.prompt if message.role != "system"]
        if len(turns) == 1 and turns[0].role == "user" and turns[0].content.strip():
            system = "\n".join(message.content for message in row.prompt if message.role == "system")
            found.append(Example(turns[0].content, system, row.reference))
    return tuple(found)
