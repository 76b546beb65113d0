"""Low-rank factors B (out, rank) and A (rank, in): initial values by `LowRankSettings.start`, and factorisations of a matrix.

The papers are listed in tuners/low_rank.py; extraction uses the same factorisations.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from finetune_local.spec.initial import generator, kaiming_uniform, normal
from finetune_local.spec.low_rank.peft import A
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import Target
from finetune_local.spec.targets import block_of
from finetune_local.spec.tuners import PREFIX, Array, Source
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg

Floats = npt.NDArray[np.float32]

Doubles = npt.NDArray[np.float64]

EXACT_UP_TO = 1024
"""Above this smaller side a randomised search finds the principal part; a full SVD would take minutes per matrix."""

_OVERSAMPLE, _ITERATIONS = 16, 16


def initial_factors(settings: LowRankSettings, target: Target, seed: int, source: Source) -> tuple[Array, Array]:
    """A (rank, in) and B (out, rank) of a linear layer before training, fp32. Raises SpecError if LoftQ has no unquantised weights."""
    module, name = target.module, PREFIX + target.module
    rank, scale = settings.rank_of(module), settings.scale_of(module)
    a_shape, b_shape = (rank, target.in_features), (target.out_features, rank)
    if settings.start == "pissa":
        b, a = principal(source.weight(module + ".weight"), rank, name)
        return a / np.float32(math.sqrt(scale)), b / np.float32(math.sqrt(scale))
    if settings.start == "olora":  # not divided by the scale, in PEFT neither
        b, a = orthonormal(source.weight(module + ".weight"), rank)
        return a, b
    if settings.start == "loftq" and block_of(module + ".") is not None:  # what lies outside is not quantised
        if source.stored is None:
            raise SpecError(
                msg("--init loftq needs the base's unquantised weights, which are not available. Remove --init.")
            )
        error = source.stored(module + ".weight") - source.weight(module + ".weight")
        if error.any():  # else both would be zero, and no gradient would ever come
            b, a = principal(error, rank, name)
            return a / np.float32(math.sqrt(scale)), b / np.float32(math.sqrt(scale))
    if settings.start == "gaussian":
        return normal(seed, name + A, a_shape, 1.0 / rank), np.zeros(b_shape, np.float32)
    return kaiming_uniform(seed, name + A, a_shape), np.zeros(b_shape, np.float32)


def decompose(delta: Doubles, rank: int) -> tuple[Floats, Floats]:
    """B (out, rank) and A (rank, in), fp32, with B·A the best rank-`rank` approximation of `delta` (out, in).

    Computed from the eigenvectors of the smaller of ΔW·ΔWᵀ and ΔWᵀ·ΔW in fp64: many times faster than a full SVD and as exact
    for fp32 inputs.
    """
    tall = delta.shape[0] > delta.shape[1]
    wide = delta.T if tall else delta
    _, vectors = np.linalg.eigh(wide @ wide.T)  # eigenvalues rise
    first = vectors[:, ::-1][:, :rank]  # U, (small, rank)
    return _balanced(first, first.T @ wide, tall)  # S·Vᵀ, (rank, large)


def principal(weight: npt.NDArray[np.floating], rank: int, name: str) -> tuple[Floats, Floats]:
    """As decompose(), for matrices of any size: B·A is the principal part of W, split as U·√S and √S·Vᵀ.

    Large matrices use subspace iteration from random numbers determined by `name` (Halko et al. 2011, arXiv:0909.4061,
    algorithm 4.4), with enough rounds that only nearly equal singular values mix.
    """
    whole = weight.astype(np.float64)
    if min(whole.shape) <= max(EXACT_UP_TO, rank + _OVERSAMPLE):
        return decompose(whole, rank)
    basis = generator(0, name).standard_normal((whole.shape[1], rank + _OVERSAMPLE))
    for _ in range(_ITERATIONS):
        basis, _ = np.linalg.qr(whole @ basis)
        basis, _ = np.linalg.qr(whole.T @ basis)
    small, singular, right = np.linalg.svd(whole @ basis, full_matrices=False)
    second = singular[:rank, None] * (right[:rank] @ basis.T)
    return _balanced(small[:, :rank], second, False)


def orthonormal(weight: npt.NDArray[np.floating], rank: int) -> tuple[Floats, Floats]:
    """B = Q[:, :rank] and A = R[:rank] of W = Q·R.

    Q's first columns depend on W's first `rank` columns only, and A = Bᵀ·W, so only those columns are decomposed.
    """
    whole = weight.astype(np.float64)
    q, _ = np.linalg.qr(whole[:, :rank])
    return np.ascontiguousarray(q, np.float32), np.ascontiguousarray(q.T @ whole, np.float32)


def _balanced(first: Doubles, second: Doubles, tall: bool) -> tuple[Floats, Floats]:
    """B = U·√S and A = √S·Vᵀ from U and S·Vᵀ (of Wᵀ if W is tall)."""
    root = np.sqrt(np.linalg.norm(second, axis=1))
    first, second = first * root, second / np.where(root > 0, root, 1.0)[:, None]
    b, a = (second.T, first.T) if tall else (first, second)
    return np.ascontiguousarray(b, np.float32), np.ascontiguousarray(a, np.float32)
