"""What is minimised. One file per objective, found by listing; its loss is written once, over a backend's `ops`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from finetune_local.backend import Batch


class Ops(Protocol):
    """The array functions an objective may use; each backend's ops.py has them over its own arrays."""

    def sum(self, array: Any) -> Any:
        """Sum of all elements, a scalar array."""
        ...


class Objective(Protocol):
    """A loss over the log-probabilities of supervised tokens."""

    key: str
    title: str

    def loss(self, ops: Ops, logprobs: Any, batch: Batch, total: float) -> Any:
        """This micro-batch's share of the step's loss, a scalar array of the backend.

        `logprobs` (n,) are the log-probabilities of the batch's n supervised tokens in row-major order; `total` is the
        number of supervised tokens in the whole step, so that shares add up to the mean over the step.
        """
        ...


@cache
def objectives() -> Mapping[str, Objective]:
    """Every objective by its key."""
    found: dict[str, Objective] = {}
    for module in pkgutil.iter_modules(__path__):
        objective: Objective = importlib.import_module(f"{__name__}.{module.name}").OBJECTIVE
        found[objective.key] = objective
    return found
