"""Small training tasks that the backends' tests share: a plan for a tiny folder, batches with a mask, and their pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from conforming import make_plan
from finetune_local.spec.batch import Batch
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import parse_spec


def plan_of(folder: Path, method: str = "lora", **settings: Any) -> AdapterPlan:
    """The plan of a method on a folder; rank 4 unless said otherwise."""
    given = settings if method == "full" else {"rank": 4, **settings}
    return make_plan(parse_spec({"method": {"key": method, **given}}, "test"), folder)


def batch_of(rows: int = 4, length: int = 20, seed: int = 0, vocabulary: int = 380) -> Batch:
    """Random rows of different lengths; the second half of each is supervised."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length // 2, length + 1, rows).astype(np.int32)
    lengths[0] = length
    ids = np.zeros((rows, length), np.int32)
    mask = np.zeros((rows, length), np.bool_)
    for row, n in enumerate(lengths):
        ids[row, :n] = rng.integers(3, vocabulary, n)
        mask[row, n // 2 : n] = True
    return Batch(ids, lengths, mask)


def pieces(batch: Batch, size: int) -> list[Batch]:
    """The same rows, `size` at a time, each piece padded only to its own longest row."""
    result = []
    for start in range(0, len(batch.ids), size):
        part = slice(start, start + size)
        width = int(batch.lengths[part].max())
        result.append(Batch(batch.ids[part, :width], batch.lengths[part], batch.mask[part, :width]))
    return result
