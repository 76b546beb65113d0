"""The adapters of a step and their parameters, in the form that MLX's function transformations take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from finetune_local.spec.value_head import VALUE_HEAD
from finetune_local_backends.mlx.tuners import MlxAdapter
from finetune_local_backends.multi_adapter import Rows


class Pass:
    """The active adapters of a step, each with the names of its trained parameters.

    Parameters are prefixed with the adapter's number, since two adapters may have tensors of the same name. Of the trained ones,
    `outside` are used outside the blocks, `blocks` in each block. `gradients` are those accumulated so far; `penalty_due` means that they
    do not include the regularisation yet.
    """

    def __init__(
        self,
        adapters: Sequence[tuple[MlxAdapter, Sequence[str]]],
        rows: Rows,
        checkpointing: bool,
        keys: Sequence[mx.array],
    ) -> None:
        """`keys` are the random keys of each round's dropout."""
        self.rows, self.checkpointing = rows, checkpointing
        self.gradients: dict[str, mx.array] = {}
        self.penalty_due = True
        self.outside: list[str] = []
        self.blocks: dict[int, list[str]] = {}
        self._adapters = [adapter for adapter, _ in adapters]
        self._trained = [list(trained) for _, trained in adapters]
        self._keys = iter(keys)
        for number, (adapter, trained) in enumerate(adapters):
            known = set(trained) - {VALUE_HEAD}
            for block, names in adapter.used().items():
                if used := [numbered(number, name) for name in names if name in known]:
                    (self.outside if block is None else self.blocks.setdefault(block, [])).extend(used)

    def trained(self) -> dict[str, mx.array]:
        """The current values of the step's trained parameters."""
        return {
            numbered(number, name): adapter.parameters[name]
            for number, (adapter, names) in enumerate(zip(self._adapters, self._trained, strict=True))
            for name in names
        }

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """Make the adapters use these parameters, given by numbered names."""
        parts: list[dict[str, mx.array]] = [{} for _ in self._adapters]
        for name, array in parameters.items():
            number, _, own = name.partition(":")
            parts[int(number)][own] = array
        for adapter, part in zip(self._adapters, parts, strict=True):
            adapter.place(part)

    def place_own(self) -> None:
        """Make the adapters use their own parameters again, so that no traced array remains in a layer."""
        for adapter in self._adapters:
            adapter.place(adapter.parameters)

    def next_dropout(self) -> None:
        """Draw the random numbers of the next round."""
        key = next(self._keys)
        keys = [key] if len(self._adapters) == 1 else list(mx.random.split(key, len(self._adapters)))
        for adapter, own in zip(self._adapters, keys, strict=True):
            adapter.dropout(own)

    def no_dropout(self) -> None:
        """Turn dropout off."""
        for adapter in self._adapters:
            adapter.dropout(None)

    def penalty(self, parameters: Mapping[str, mx.array]) -> mx.array | None:
        """The sum of the adapters' regularisation for these parameters, or None."""
        self.place(parameters)
        parts = [part for adapter in self._adapters if (part := adapter.penalty()) is not None]
        return mx.stack(parts).sum() if parts else None

    def add(self, gradients: Mapping[str, mx.array]) -> None:
        """Accumulate a round's gradients."""
        known = self.gradients
        self.gradients = {n: known[n] + g if n in known else g for n, g in (known | dict(gradients)).items()}

    def take(self, number: int) -> dict[str, mx.array]:
        """Remove and return an adapter's gradients, by the names without the number."""
        return {name: self.gradients.pop(numbered(number, name)) for name in self._trained[number]}


def numbered(number: int, name: str) -> str:
    """A parameter's name, prefixed with its adapter's number."""
    return f"{number}:{name}"


def norm_of(gradients: Mapping[str, mx.array]) -> float:
    """The L2 norm over all gradients."""
    squares = [mx.square(g).sum() for g in gradients.values()]
    return math.sqrt(float(np.array(mx.stack(squares).sum()))) if squares else 0.0
