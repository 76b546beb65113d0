"""The arithmetic of each family of parameters: one file per file of spec/families, with an `attach()` each.

    def attach(model: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> Adapter

makes an adapter, inactive, from the tensors of `shapes(plan)`, reading each of them once: they may be made as they are asked
for. Raises ModelError where the base has no module for a target. sites.py has what most families are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finetune_local.spec.targets import block_of

if TYPE_CHECKING:
    import mlx.core as mx

Floats = npt.NDArray[np.float32]


class Adapter:
    """One set of parameters in memory, beside the base.

    `parameters` are fp32 under their names on disk, frozen ones included; the session replaces them after each update and
    calls changed(). A subclass has place() and withdraw(), and of the rest what is different for it.
    """

    parameters: dict[str, mx.array]

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """Make the model compute with these (all of them, or some: the others stay as they were placed before)."""
        raise NotImplementedError

    def withdraw(self) -> None:
        """Make the model compute as the bare base."""
        raise NotImplementedError

    def remove(self) -> None:
        """Leave the model as if it had never been attached. Called after withdraw()."""

    def changed(self) -> None:
        """Bring up to date what is derived from the parameters."""

    def dropout(self, key: mx.array | None) -> None:
        """Turn dropout on with random numbers from this key, or off."""

    def penalty(self, parameters: Mapping[str, mx.array]) -> mx.array | None:
        """What is added to the loss of a step, once, and not told: a family's regularisation. A scalar, or None."""
        return None

    def used(self) -> dict[int | None, list[str]]:
        """The names of the parameters that each block computes with; under None those of the rest of the model."""
        result: dict[int | None, list[str]] = {}
        for name in self.parameters:
            result.setdefault(block_of(name), []).append(name)
        return result

    def tensors(self) -> dict[str, Floats]:
        """Everything that goes to disk."""
        return {name: np.array(array) for name, array in self.parameters.items()}


def check_tensors(given: Mapping[str, Floats], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise AdapterError where a tensor is missing, left over or misshapen."""
    from finetune_local.system.errors import AdapterError

    if wrong := sorted(set(given) ^ set(expected)):
        state = "missing" if wrong[0] in expected else "not expected"
        raise AdapterError(f"the adapter does not fit: {wrong[0]} is {state} ({len(wrong)} such tensors).")
    for name, shape in expected.items():
        if tuple(given[name].shape) != tuple(shape):
            raise AdapterError(f"the adapter does not fit: {name} has shape {given[name].shape}, expected {shape}.")
