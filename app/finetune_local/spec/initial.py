"""Random numbers that do not depend on the backend or on the order of layers: initial values and NEFTune's noise.

Initial values are determined by the seed and the parameter's name.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def generator(seed: int, name: str) -> np.random.Generator:
    """A generator seeded by the seed and the parameter's name only."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def kaiming_uniform(seed: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """U(−1/√in, 1/√in) for a matrix (out, in): LoRA's A in PEFT (kaiming_uniform_ with a = √5)."""
    bound = 1.0 / math.sqrt(shape[-1])
    return generator(seed, name).uniform(-bound, bound, shape).astype(np.float32)


def normal(seed: int, name: str, shape: tuple[int, ...], spread: float) -> npt.NDArray[np.float32]:
    """N(0, spread²), fp32."""
    return (generator(seed, name).standard_normal(shape) * spread).astype(np.float32)


def row_noise(seed: int, ids: Sequence[int] | npt.NDArray[np.integer], width: int, alpha: float) -> Floats:
    """NEFTune's noise for one row without padding, (length, width) (Jain et al. 2023, arXiv:2310.05914, section 2, algorithm 1).

    U(−1, 1)·alpha/√(L·d) with L the row's length and d the width. It is determined by the step's seed and the row's tokens, so neither
    the other rows of a micro-batch nor padding change it, and a resumed run draws the same noise.
    """
    tokens = np.ascontiguousarray(ids, np.int64)
    bound = alpha / math.sqrt(max(1, len(tokens)) * width)
    name = f"neftune:{hashlib.sha256(tokens.tobytes()).hexdigest()}"
    return (generator(seed, name).random((len(tokens), width), np.float32) * 2 - 1) * np.float32(bound)
