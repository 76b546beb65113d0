"""What training keeps for each adapter, and what one pass of the base computes with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import Tracker
from finetune_local_backends.mlx.optimizer import AdamW
from finetune_local_backends.mlx.tuners import Adapter


@dataclass
class Training:
    """What prepare() made ready."""

    name: str
    settings: TrainingSettings
    optimizer: AdamW
    tracker: Tracker | None
    trained: list[str]


@dataclass
class Pass:
    """What a pass of the base computes with: an adapter, or several as one.

    Of the names of trained parameters, `outside` are those computed with outside the blocks, `blocks` those in each.
    """

    adapter: Adapter
    trained: list[str]
    checkpointing: bool
    outside: list[str] = field(default_factory=list)
    blocks: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = set(self.trained)
        for block, names in self.adapter.used().items():
            if used := [name for name in names if name in known]:
                (self.outside if block is None else self.blocks.setdefault(block, [])).extend(used)


def norm_of(gradients: Mapping[str, mx.array]) -> float:
    """The L2 norm over all gradients."""
    squares = [mx.square(g).sum() for g in gradients.values()]
    return math.sqrt(float(np.array(mx.stack(squares).sum()))) if squares else 0.0
