"""Draw examples for the few-shot base: the base with k solved rows in its prompt.

They come from a file that the user names, else from the adapter's training data, else from the evaluated rows, which are then not
scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune_local.adapters.library import run_tables
from finetune_local.data.conversation import Conversation, Rejected
from finetune_local.evaluation.rows import Row, collect
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg

POOL = 2000
"""Examples are drawn from this many rows at the start of a file."""


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
