"""The arithmetic of each family of parameters: one file per file of spec/families, with an `attach()` each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import mlx.core as mx

Floats = npt.NDArray[np.float32]


class Adapter(Protocol):
    """One set of trained parameters in memory, beside the base.

    `parameters` are fp32 under their names on disk; the session replaces them after each update and calls changed().
    """

    parameters: dict[str, mx.array]

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """Make the model compute with these (all of them, or a block's)."""
        ...

    def withdraw(self) -> None:
        """Make the model compute as the bare base."""
        ...

    def remove(self) -> None:
        """Leave the model as if it had never been attached. Called after withdraw()."""
        ...

    def changed(self) -> None:
        """Bring up to date what is derived from the parameters."""
        ...

    def dropout(self, key: mx.array | None) -> None:
        """Turn dropout on with random numbers from this key, or off."""
        ...

    def tensors(self) -> dict[str, Floats]:
        """Everything that goes to disk."""
        ...


def check_tensors(given: Mapping[str, Floats], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise AdapterError where a tensor is missing, left over or misshapen."""
    from finetune_local.errors import AdapterError

    if wrong := sorted(set(given) ^ set(expected)):
        state = "missing" if wrong[0] in expected else "not expected"
        raise AdapterError(f"the adapter does not fit: {wrong[0]} is {state} ({len(wrong)} such tensors).")
    for name, shape in expected.items():
        if tuple(given[name].shape) != tuple(shape):
            raise AdapterError(f"the adapter does not fit: {name} has shape {given[name].shape}, expected {shape}.")
