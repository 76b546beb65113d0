"""Initial A and B of a low-rank update, by `LowRankSettings.start`; the papers are listed in tuners/low_rank.py."""

from __future__ import annotations

import math

import numpy as np

from finetune_local.spec.initial import kaiming_uniform, normal
from finetune_local.spec.low_rank.peft import A
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.numerics.factors import orthonormal, principal
from finetune_local.spec.plan import Target
from finetune_local.spec.targets import block_of
from finetune_local.spec.tuners import PREFIX, Array, Source
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg


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
                msg("--init loftq needs the base's unquantised weights, which were not given. Leave --init out.")
            )
        error = source.stored(module + ".weight") - source.weight(module + ".weight")
        if error.any():  # else both would be zero, and no gradient would ever come
            b, a = principal(error, rank, name)
            return a / np.float32(math.sqrt(scale)), b / np.float32(math.sqrt(scale))
    if settings.start == "gaussian":
        return normal(seed, name + A, a_shape, 1.0 / rank), np.zeros(b_shape, np.float32)
    return kaiming_uniform(seed, name + A, a_shape), np.zeros(b_shape, np.float32)
