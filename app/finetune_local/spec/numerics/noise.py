"""NEFTune (Jain et al. 2023, arXiv:2310.05914): noise on the embeddings during training, in numpy, equal on every backend.

    x ← x + u,    u ~ U(−1, 1)·alpha/√(L·d)        L the row's length without padding, d the width (section 2, algorithm 1)

A row's noise is determined by the step's seed and the row's tokens, so neither other rows of the micro-batch nor padding
change it, and a resumed run draws the same noise.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune_local.spec.initial import generator

Floats = npt.NDArray[np.float32]


def row_noise(seed: int, ids: Sequence[int] | npt.NDArray[np.integer], width: int, alpha: float) -> Floats:
    """The noise of one row without padding, (length, width)."""
    tokens = np.ascontiguousarray(ids, np.int64)
    bound = alpha / math.sqrt(max(1, len(tokens)) * width)
    name = f"neftune:{hashlib.sha256(tokens.tobytes()).hexdigest()}"
    return (generator(seed, name).random((len(tokens), width), np.float32) * 2 - 1) * np.float32(bound)
