"""Where the trained parameters live: one file per family, found by listing this folder.

A family file has
    FAMILY: Family        its settings class, how it selects targets, counts parameters, names tensors, and merges
and each backend has a file of the same name in its `methods/` that does the arithmetic.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Protocol

import numpy as np

from finetune_local.errors import SpecError
from finetune_local.spec.fields import Settings
from finetune_local.spec.plan import AdapterPlan, Target, WeightInfo

Array = np.ndarray


class Family(Protocol):
    """What the app needs to know of a family; numpy only."""

    key: str
    settings: type[Settings]

    def plan(self, method: str, settings: Settings, weights: Mapping[str, WeightInfo]) -> AdapterPlan:
        """Choose the targets among the base's weights. Raises SpecError where none match or a rank is too big."""
        ...

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """Every trained tensor: its name in the adapter file and its shape."""
        ...

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """adapter_config.json, in PEFT's words where PEFT knows the family."""
        ...

    def read(self, config: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """The plan of an adapter on disk, from its config and its tensors' shapes. Raises AdapterError."""
        ...

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """A base weight (fp32) with the adapter folded in; the same array where the adapter does not touch it."""
        ...


@cache
def families() -> Mapping[str, Family]:
    """Every family, by key."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        family: Family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
        if family.key != module.name:
            raise RuntimeError(f"spec/families/{module.name}.py declares key {family.key!r}")
        found[family.key] = family
    return found


def trainable_parameters(plan: AdapterPlan) -> int:
    """Number of trained numbers, by the family's formula."""
    return sum(int(np.prod(shape)) for shape in families()[plan.family].shapes(plan).values())


def check_rank(rank: int, target: Target) -> None:
    """Raise SpecError where a rank is above what the matrix can use."""
    limit = min(target.in_features, target.out_features)
    if rank > limit:
        raise SpecError(
            f"rank is {rank}, but {target.module} is {target.out_features} × {target.in_features}: "
            f"a rank above {limit} adds nothing. Lower --rank to {limit} or less."
        )
