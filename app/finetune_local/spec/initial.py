"""Random initial values, determined by the seed and the parameter's name: equal on every backend, whatever the order of layers."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt


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
