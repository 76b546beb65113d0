"""Encode an example to rows of token ids with a supervision mask, by the model's chat template or raw."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from finetune_local.data.conversation import Conversation, Message, Rejected, RowRejected, Source, other_kind
from finetune_local.data.tokenizers.tokenizer import Segment, Tokenizer
from finetune_local.spec.objectives import Objective
from finetune_local.system.errors import FinetuneError
from finetune_local.system.messages import msg

Template = Literal["chat", "raw"]
Arrays = tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]

Row = Conversation | Rejected

_ROWS = 32


@dataclass(frozen=True)
class Encoded:
    """One row for training: ids (length,) int32 and mask (length,) bool, true where a token is supervised (never the first).

    `cut` is the number of messages dropped from the front to fit. Rows of one source with the same `example` are one example; `weight` is
    assigned by the objective (Batch.weight).
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    source: Source
    cut: int = 0
    example: int = 0
    weight: float = 1.0


def check_kind(objective: Objective, conversation: Conversation) -> None:
    """Raise RowRejected for an example of a kind that the objective does not learn from."""
    if conversation.kind not in objective.examples:
        raise RowRejected(other_kind(conversation.kind, objective))


def encode(conversation: Conversation, tokenizer: Tokenizer, template: Template, max_length: int) -> list[Encoded]:
    """The rows of a conversation: one, for a pair two, for a plain text as many as its length needs.

    Every trainable answer is supervised, with its end-of-turn token; what follows the last one is dropped. Raises RowRejected if nothing
    is supervised, the template refuses, or it is too long with only the last question left.
    """
    if conversation.text is not None:
        return _plain(conversation, conversation.text, tokenizer, max_length)
    chats = [_through_last_answer(chat) for chat in conversation.chats]
    found = [_fitting(chat, tokenizer, template, max_length) for chat in chats]
    start = max(first for first, _ in found)  # a pair's answers follow the same turns
    rows = []
    for weight, messages, (own, arrays) in zip((1.0, -1.0), chats, found, strict=False):
        ids, mask = arrays if own == start else _joined(segments(_from(messages, start), tokenizer, template))
        if len(ids) > max_length:
            raise RowRejected(
                msg(
                    "its last question and answer have {tokens} tokens, more than the {length} of --max-length. Raise "
                    "--max-length to {tokens}, or shorten it.",
                    tokens=len(ids),
                    length=max_length,
                )
            )
        if not mask.any():
            raise RowRejected(
                msg("nothing in it would be learned: no answer remains after truncation to --max-length.")
            )
        cut = len(messages) - len(_from(messages, start))
        rows.append(Encoded(ids, mask, conversation.source, cut, weight=weight))
    return rows


def learned_chats(row: Conversation | Rejected) -> list[Sequence[Message]]:
    """The chats of a row that encode() renders first; none if it needs no template."""
    if isinstance(row, Rejected):
        return []
    try:
        return [_through_last_answer(chat) for chat in row.chats]
    except RowRejected:
        return []


def segments(messages: Sequence[Message], tokenizer: Tokenizer, template: Template) -> list[Segment]:
    """A whole conversation as pieces of ids with supervision flags; raw ends it with the end-of-text token."""
    if template == "chat":
        return tokenizer.segments(messages)
    pieces = tokenizer.raw_segments([(m.content, m.role == "assistant" and m.train) for m in messages])
    return [*pieces, ([tokenizer.eos_id], pieces[-1][1])]


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer, template: Template) -> list[int]:
    """The ids that precede the answer, as seen in training with this template."""
    if template == "chat":
        return tokenizer.prompt_ids(messages)
    pieces = tokenizer.raw_segments([(m.content, False) for m in messages])
    return [i for ids, _ in pieces for i in ids]


def kept(messages: Sequence[Message], cut: int) -> tuple[Message, ...]:
    """The messages that remain after `cut` of them were dropped from the front; a leading system text stays."""
    system = 1 if messages and messages[0].role == "system" else 0
    return (*messages[:system], *messages[system + cut :])


def _plain(conversation: Conversation, text: str, tokenizer: Tokenizer, max_length: int) -> list[Encoded]:
    pieces = tokenizer.raw_segments([(text, True)])
    if conversation.ends:
        pieces.append(([tokenizer.eos_id], True))
    ids, mask = _joined(pieces)
    rows: list[Encoded] = []
    for start in range(0, len(ids), max_length):
        part, learned = ids[start : start + max_length].copy(), mask[start : start + max_length].copy()
        learned[0] = False  # nothing comes before it that it could be predicted from
        if learned.any():
            rows.append(Encoded(part, learned, conversation.source, example=len(rows)))
    if not rows:
        raise RowRejected(msg("the text is a single token, so there is nothing to predict."))
    return rows


def _through_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    last = max((i for i, m in enumerate(messages) if m.role == "assistant" and m.train), default=None)
    if last is None:
        if any(m.role == "assistant" for m in messages):
            raise RowRejected(msg("nothing in it would be learned: every answer has a weight of 0."))
        raise RowRejected(msg("it has no assistant turn, so there is no answer to learn."))
    return messages[: last + 1]


def _exchanges(messages: Sequence[Message]) -> list[int]:
    """Where the conversation may start after a cut: at the beginning, or at a user turn followed by a trainable answer."""
    system = 1 if messages[0].role == "system" else 0
    later = [i for i, m in enumerate(messages) if m.role == "user" and i > system and messages[i - 1].role != "user"]
    return [system, *later]


def _from(messages: Sequence[Message], start: int) -> tuple[Message, ...]:
    system = 1 if messages[0].role == "system" else 0
    return (*messages[:system], *messages[start:])


def _fitting(
    messages: Sequence[Message], tokenizer: Tokenizer, template: Template, max_length: int
) -> tuple[int, Arrays]:
    """The first start from which the rest fits, with its arrays; the last start if none does.

    Uses bisection, since later starts are shorter. Most conversations fit whole and are encoded once.
    """
    starts = _exchanges(messages)

    def encoded(number: int) -> Arrays:
        return _joined(segments(_from(messages, starts[number]), tokenizer, template))

    low, high, found = 0, len(starts) - 1, encoded(0)
    if len(found[0]) <= max_length or high == 0:
        return starts[0], found
    low, found = 1, encoded(high)
    while low < high:
        middle = (low + high) // 2
        tried = encoded(middle)
        if len(tried[0]) <= max_length:
            high, found = middle, tried
        else:
            low = middle + 1
    return starts[high], found


def _joined(pieces: Sequence[Segment]) -> Arrays:
    """Pieces as arrays, without what follows the last supervised one."""
    last = max((i for i, (ids, supervised) in enumerate(pieces) if supervised and ids), default=-1)
    used = pieces[: last + 1]
    if not used:
        return np.empty(0, np.int32), np.empty(0, np.bool_)
    ids = np.array([i for part, _ in used for i in part], np.int32)
    mask = np.repeat([supervised for _, supervised in used], [len(part) for part, _ in used]).astype(np.bool_)
    mask[0] = False
    return ids, mask


def rendered_ahead(rows: Iterable[Row], tokenizer: Tokenizer | None, template: str) -> Iterator[Row]:
    """The same rows in the same order; an error of `rows` is raised at its place. Reads up to 64 rows ahead."""
    if tokenizer is None or template != "chat":
        yield from rows
        return
    chunks = _Chunks(rows)
    waiting: deque[tuple[list[Row], Future[None]]] = deque()
    with ThreadPoolExecutor(1) as pool:
        while chunk := chunks.next():
            waiting.append(
                (chunk, pool.submit(tokenizer.render_ahead, [chat for row in chunk for chat in learned_chats(row)]))
            )
            if len(waiting) > 1:
                yield from _finished(waiting)
        while waiting:
            yield from _finished(waiting)
    if chunks.error is not None:
        raise chunks.error


class _Chunks:
    """Rows in chunks. An error of the source ends them and is stored."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = iter(rows)
        self.error: FinetuneError | None = None

    def next(self) -> list[Row]:
        found: list[Row] = []
        if self.error is None:
            try:
                for row in self._rows:
                    found.append(row)
                    if len(found) == _ROWS:
                        break
            except FinetuneError as error:
                self.error = error
        return found


def _finished(waiting: deque[tuple[list[Row], Future[None]]]) -> list[Row]:
    rows, rendered = waiting.popleft()
    rendered.result()
    return rows
