"""NEFTune's noise for a whole micro-batch, to be added to the embedding's output; see row_noise() in spec/initial.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune_local.spec.batch import Batch, Floats
from finetune_local.spec.initial import row_noise
from finetune_local.spec.tuners import VirtualIds


def batch_noise(batch: Batch, alphas: Sequence[float], seed: int, width: int, virtual: VirtualIds) -> Floats | None:
    """(ensemble_size·rows, count + length, width) for a batch without virtual tokens; zero on padding and on virtual tokens.

    `alphas` are those of the rows; None where all are zero. Every prompt of an ensemble sees a row with the same noise.
    """
    if not any(alphas):
        return None
    noise = np.zeros((len(batch.ids), virtual.count + batch.ids.shape[1], width), np.float32)
    for row, (length, alpha) in enumerate(zip(batch.lengths, alphas, strict=True)):
        if alpha:
            noise[row, virtual.count : virtual.count + length] = row_noise(seed, batch.ids[row, :length], width, alpha)
    return np.tile(noise, (virtual.ensemble_size, 1, 1))
