"""What is minimised. One file per objective, found by listing; its loss is written once, over a backend's `ops`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

from finetune_local.spec.batch import Batch, Readout, ValueKind
from finetune_local.spec.ops import Ops

Need = Literal["reference"] | ValueKind
"""What an objective needs beside log-probabilities: Batch.reference, or Readout.values of one of two kinds."""


class Objective:
    """A loss over what a model says of a batch. A subclass overrides what is different for it."""

    key: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset()

    def count(self, batch: Batch) -> int:
        """What a step's mean is taken over, in one micro-batch: supervised tokens, or for some objectives examples."""
        return batch.supervised

    def loss(self, ops: Ops, readout: Readout, batch: Batch, total: float) -> Any:
        """This micro-batch's share of the step's loss, a scalar array of the backend.

        `total` is the sum of `count` over the step's micro-batches, so that the shares add up to the step's mean.
        """
        raise NotImplementedError


@cache
def objectives() -> Mapping[str, Objective]:
    """Every objective by its key."""
    found: dict[str, Objective] = {}
    for module in pkgutil.iter_modules(__path__):
        objective: Objective = importlib.import_module(f"{__name__}.{module.name}").OBJECTIVE
        found[objective.key] = objective
    return found
