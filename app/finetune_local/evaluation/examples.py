"""Held-out questions of the run that produced an adapter, with their reference answers: suggestions for a chat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from finetune_local.adapters.library import run_folder
from finetune_local.data.dataset.prepare import CONVERSATIONS, conversations
from finetune_local.evaluation.rows import collect
from finetune_local.system.errors import DataError
from finetune_local.system.files import stamp

MOST = 60


@dataclass(frozen=True)
class Example:
    """A question that was not trained on, its system prompt ("" for none), and its reference answer."""

    question: str
    system: str
    reference: str


def examples(adapter: Path) -> tuple[Example, ...]:
    """The examples of an adapter's folder; none where no run produced it, or its rows are not single questions."""
    run = run_folder(adapter)
    data = run / "data" if run is not None else None
    return () if data is None else _read(data, stamp(data, CONVERSATIONS))


@lru_cache(maxsize=16)
def _read(data: Path, _stamp: object) -> tuple[Example, ...]:
    try:
        rows, _ = collect(conversations(data, limit=MOST))
    except (DataError, OSError):
        return ()  # only suggestions: a damaged file must not stop a chat
    found = []
    for row in rows:
        turns = [message for message in row.prompt if message.role != "system"]
        if len(turns) == 1 and turns[0].role == "user" and turns[0].content.strip():
            system = "\n".join(message.content for message in row.prompt if message.role == "system")
            found.append(Example(turns[0].content, system, row.reference))
    return tuple(found)
