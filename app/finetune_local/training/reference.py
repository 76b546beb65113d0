"""The reference model's log-probabilities of a run's data, computed once and cached on disk.

Files are data/reference/<train|validation>.logprobs in the run folder: float32, one value per supervised token, rows concatenated.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finetune_local.backend import Session
from finetune_local.data.dataset.batching import batches_for_scoring
from finetune_local.data.dataset.store import Dataset
from finetune_local.spec.batch import Floats
from finetune_local.spec.objectives import Objective
from finetune_local.system import checksums
from finetune_local.system.errors import OutOfMemory
from finetune_local.system.files import written_aside
from finetune_local.system.messages import msg
from finetune_local.training.checkpoints.checkpoint import RESUME
from finetune_local.training.events import Event, Phase
from finetune_local.training.run_folder.runs import Run

if TYPE_CHECKING:
    from finetune_local.data.dataset.prepare import Prepared

FOLDER, SUFFIX = "reference", ".logprobs"


def keep(
    run: Run, session: Session, objective: Objective, data: Prepared, max_tokens: int, group: int
) -> Generator[Event, None, None]:
    """Set the reference's log-probabilities on the data, if the objective caches them. Raises OutOfMemory, DiskFull.

    `group` is the group size of shifted attention in training, 0 for full attention; validation uses full attention.
    """
    if not objective.keeps_reference:
        return
    folder, sides = run.data / FOLDER, (data.train, data.validation)
    if not folder.is_dir() or checksums.problem(folder, [side.name + SUFFIX for side in sides]):
        with written_aside(folder, RESUME) as place:
            place.mkdir()
            for side in sides:
                found = yield from _computed(session, side, max_tokens, group if side is data.train else 0)
                (place / f"{side.name}{SUFFIX}").write_bytes(found.tobytes())
            checksums.write(place)
    for side in sides:
        side.set_reference(_read(folder / f"{side.name}{SUFFIX}"))


def _read(path: Path) -> Floats:
    return np.fromfile(path, np.float32)


def _computed(session: Session, data: Dataset, max_tokens: int, group: int) -> Generator[Event, None, Floats]:
    """Log-probabilities (supervised tokens of all rows,) under the base with every adapter off."""
    starts = data.supervised_before
    found = np.zeros(int(starts[-1]), np.float32)
    done, order = 0, np.arange(len(data), dtype=np.int64)
    while done < len(order):
        try:
            for examples, batch in batches_for_scoring(data, order[done:], max_tokens):
                yield Phase(name=msg("computing the reference"), done=done / len(order))
                scores = session.score(batch, reference=True, group=group)
                rows = [n for e in examples for n in data.rows_of(int(e))]
                ends = np.cumsum([starts[row + 1] - starts[row] for row in rows])[:-1]
                for row, part in zip(rows, np.split(scores, ends), strict=True):
                    found[starts[row] : starts[row + 1]] = part
                done += len(examples)
        except OutOfMemory:
            if batch.examples == 1:
                raise
            max_tokens, done = max(1, min(max_tokens, batch.ids.size) // 2), 0
    return found
