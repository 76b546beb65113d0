"""The arithmetic of each tuner: one file per file of spec/tuners, each with an `attach()`; see adapter.py beside the backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from finetune_local.spec.batch import Floats
from finetune_local.spec.targets import block_of
from finetune_local_backends.adapter import Adapter

if TYPE_CHECKING:
    import mlx.core as mx


class MlxAdapter(Adapter["mx.array"]):
    """See Adapter. MLX's arrays are immutable, so each update and each traced function supplies new ones."""

    def tensors(self) -> dict[str, Floats]:
        """See Adapter."""
        return {name: np.array(array) for name, array in self.parameters.items()}

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """Make the active adapter use these parameters: all, or some in addition to those placed before."""
        raise NotImplementedError

    def dropout(self, key: mx.array | None) -> None:
        """Turn dropout on with this random key, or off with None."""

    def penalty(self) -> mx.array | None:
        """The tuner's regularisation for the placed parameters, a scalar that a step adds to its loss once and does not report."""
        return None

    def used(self) -> dict[int | None, list[str]]:
        """The names of the parameters that each block uses; under None those used outside the blocks."""
        result: dict[int | None, list[str]] = {}
        for name in self.parameters:
            result.setdefault(block_of(name), []).append(name)
        return result
