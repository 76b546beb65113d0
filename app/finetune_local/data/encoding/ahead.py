"""Render chats in batches ahead of tokenization.

A chat template runs in a child process (guarded_template.py). Row by row, both processes would wait for each other; in advance, it
renders the next rows while earlier ones are tokenized.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from finetune_local.data.conversation import Conversation, Rejected
from finetune_local.data.encoding.encode import learned_chats
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.system.errors import FinetuneError

Row = Conversation | Rejected

_ROWS = 32


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
