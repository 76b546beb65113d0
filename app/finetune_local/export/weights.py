"""The tensors of base + adapter, merged one at a time in fp32: what every export target is written from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_local.adapters.companions import beside
from finetune_local.adapters.identity import check_same_base, check_shapes, read_identity
from finetune_local.errors import AdapterError, ModelError
from finetune_local.layout import read_adapter
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.families import Array, family_of
from finetune_local.spec.plan import AdapterPlan

Floats = npt.NDArray[np.float32]
WEIGHT = ".weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class MergedWeights:
    """A base and, where given, an adapter on it. Nothing is read before `read()`."""

    def __init__(self, model: ModelFolder, adapter: Path | None) -> None:
        """Raises AdapterError where the adapter was made on another base. (ModelFolder.open refuses a quantised one.)"""
        self.model, self.adapter = model, adapter
        self._plan: AdapterPlan | None = None
        self._tensors: Mapping[str, Array] = {}
        self.run: str | None = None
        if adapter is not None:
            self._plan, self._tensors = read_adapter(adapter)
            identity = read_identity(adapter)
            if identity is not None:
                check_same_base(identity, model, beside(adapter))
                self.run = identity.run
            check_shapes(self._plan, model)
            family = family_of(self._plan)
            if reason := family.unmergeable(self._plan):
                raise AdapterError(f"{adapter}: {reason}")
            self._plan, self._tensors = family.fold(self._plan, self._tensors)  # a checkpoint is in the training form
        trained = {target.module for target in self._plan.targets} if self._plan else set()
        apart = {name for both in (HEAD, EMBEDDING) for name in (both, both.removesuffix(WEIGHT))} & trained
        self.tied = model.tied and (not apart or self._plan_is_full)
        """Whether the head is the embedding; an adapter beside one of them unties them, for it leaves the other as it is."""

    @property
    def _plan_is_full(self) -> bool:
        return self._plan is not None and self._plan.family == "full"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor to be written and its shape; a stored copy of a tied head is left out."""
        stored = {name: info.shape for name, info in self.model.weights().items()}
        if self.model.tied and not self.tied:
            stored.setdefault(HEAD, stored[EMBEDDING])
        return {name: shape for name, shape in stored.items() if not (self.tied and name == HEAD)}

    def read(self, name: str) -> Floats:
        """One merged tensor. Raises AdapterError where the adapter makes it NaN or infinite."""
        weight = self.model.read(EMBEDDING if self.model.tied and name == HEAD else name)
        if self._plan is not None:
            weight = family_of(self._plan).merge(name, weight, self._plan, self._tensors)
        if not np.isfinite(weight).all():
            raise AdapterError(
                f"{name} has values that are no numbers (NaN or infinity) after merging. The training diverged or a file is "
                "damaged: use an earlier checkpoint of the run."
            )
        return np.ascontiguousarray(weight, np.float32).reshape(weight.shape)  # a scalar would become a vector of one


def check_float16(name: str, weight: Floats) -> None:
    """Raise ModelError where a value does not fit into float16 (it would become infinite)."""
    largest = float(np.abs(weight).max(initial=0.0))
    if largest >= 65520.0:  # the smallest number that rounds to infinity
        raise ModelError(
            f"{name} has a value of {largest:.6g}, and float16 ends at 65504. Export it as bfloat16 or float32 instead."
        )
