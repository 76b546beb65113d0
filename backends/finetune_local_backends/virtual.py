"""Virtual tokens and NEFTune's noise, which change what a base reads of a batch.

Virtual tokens are ids past the vocabulary for the trained rows of a prompt, inserted before every text: row i of prompt m has the id
vocabulary + count·m + i. A tuner's file in a backend's tuners/ maps these ids to vectors. For a prompt ensemble a batch is repeated, one
block of rows per prompt, so that one pass of the base computes all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune_local.spec.batch import Batch, Floats
from finetune_local.spec.initial import row_noise
from finetune_local.spec.tuners import VirtualIds


def row_with(ids: Sequence[int], vocabulary: int, tokens: VirtualIds, prompt: int = 0) -> list[int]:
    """A text preceded by the virtual tokens of one prompt of the ensemble."""
    start = vocabulary + tokens.count * prompt
    return [*range(start, start + tokens.count), *ids]


def batch_with(batch: Batch, vocabulary: int, tokens: VirtualIds) -> Batch:
    """The batch with each prompt: all rows with prompt 0, then all with prompt 1, …. Virtual tokens are not supervised.

    (rows, length) becomes (ensemble_size·rows, count + length); without virtual tokens the batch is returned unchanged.
    """
    if tokens.count == 0:
        return batch
    ensemble_size, rows = tokens.ensemble_size, len(batch.ids)
    prompts = vocabulary + np.arange(ensemble_size * tokens.count, dtype=np.int32).reshape(ensemble_size, tokens.count)
    ids = np.concatenate([np.repeat(prompts, rows, axis=0), np.tile(batch.ids, (ensemble_size, 1))], axis=1)
    unseen = np.zeros((ensemble_size * rows, tokens.count), np.bool_)
    mask = np.concatenate([unseen, np.tile(batch.mask, (ensemble_size, 1))], axis=1)
    lengths = np.tile(batch.lengths, ensemble_size) + tokens.count
    return Batch(ids.astype(np.int32), lengths.astype(np.int32), mask)


def mean_over_ensemble(values: npt.NDArray[np.float32], ensemble_size: int) -> Floats:
    """The mean over the prompts of an ensemble: (ensemble_size·n,) to (n,)."""
    if ensemble_size == 1:
        return values
    mean: Floats = values.reshape(ensemble_size, -1).mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def batch_noise(batch: Batch, alphas: Sequence[float], seed: int, width: int, virtual: VirtualIds) -> Floats | None:
    """NEFTune's noise for a batch without virtual tokens, (ensemble_size·rows, count + length, width); zero on padding and virtual tokens.

    `alphas` has one value per row; None if all are zero. Every prompt of an ensemble sees a row with the same noise (see row_noise()).
    """
    if not any(alphas):
        return None
    noise = np.zeros((len(batch.ids), virtual.count + batch.ids.shape[1], width), np.float32)
    for row, (length, alpha) in enumerate(zip(batch.lengths, alphas, strict=True)):
        if alpha:
            noise[row, virtual.count : virtual.count + length] = row_noise(seed, batch.ids[row, :length], width, alpha)
    return np.tile(noise, (virtual.ensemble_size, 1, 1))
