"""The tensors of base + adapter, merged one at a time in fp32. Every export target is written from these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_local.adapters.companions import beside, prompt_setup
from finetune_local.adapters.identity import check_same_base, check_shapes, read_identity
from finetune_local.adapters.token_tables import check_rows, read_on
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.low_rank.full_copies import is_table, shape_of
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX, Array, tuner_of
from finetune_local.spec.value_head import folded
from finetune_local.system.errors import AdapterError, ModelError
from finetune_local.system.messages import msg

Floats = npt.NDArray[np.float32]
WEIGHT = ".weight"
FLOAT16_ENDS = 65520.0
"""The smallest number that rounds to infinity."""

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class MergedWeights:
    """A base, with an adapter if one is given. Tensors are read only by `read()`."""

    def __init__(self, model: ModelFolder, adapter: Path | None) -> None:
        """Raises AdapterError if the adapter was trained on another base. (ModelFolder.open refuses quantized models.)"""
        self.model, self.adapter = model, adapter
        self._plan: AdapterPlan | None = None
        self._tensors: Mapping[str, Array] = {}
        self.run: str | None = None
        self.looked_through: set[tuple[str, float]] = set()
        """Tensors of the base that were checked to fit a number format; see check_float16_base."""
        if adapter is not None:
            identity = read_identity(adapter)
            if identity is not None:
                check_same_base(identity, model, beside(adapter))
                self.run = identity.run
            self._plan, self._tensors = read_on(adapter, model)
            check_shapes(self._plan, model)
            check_rows(self._plan, model, prompt_setup(model.path, adapter), adapter)
            tuner = tuner_of(self._plan)
            if reason := tuner.merge_refusal(self._plan):
                raise AdapterError(msg("{adapter}: {reason}", adapter=adapter, reason=reason))
            self._plan, self._tensors = folded(self._plan, self._tensors)  # a checkpoint is in the training form
        trained = {target.module for target in self._plan.targets} if self._plan else set()
        apart = {name for both in (HEAD, EMBEDDING) for name in (both, both.removesuffix(WEIGHT))} & trained
        copies = [self._tensors.get(PREFIX + name) for name in (HEAD, EMBEDDING)]
        together = copies[0] is not None and copies[0] is copies[1]
        self.tied = model.tied and (not apart or self._trains_base or together)
        """Whether the head is the embedding. An adapter at one of the two unties them, since it does not change the other."""

    @property
    def _trains_base(self) -> bool:
        return self._plan is not None and tuner_of(self._plan).trains_base

    @property
    def config(self) -> Mapping[str, Any]:
        """The base's config.json with the vocabulary size of the merged tables."""
        rows = next((t.out_features for t in self._plan.targets if is_table(t)), None) if self._plan else None
        if rows is None:
            return self.model.config
        config = dict(self.model.config)
        parts = [config]
        if isinstance(nested := config.get("text_config"), dict):
            config["text_config"] = dict(nested)
            parts.append(config["text_config"])
        for part in parts:
            if "vocab_size" in part:
                part["vocab_size"] = rows
        return config

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor to be written, with its shape; a stored copy of a tied head is omitted."""
        stored = {name: info.shape for name, info in self.model.weights().items()}
        for target in self._plan.targets if self._plan is not None else ():
            if is_table(target) and target.module in stored:  # with the rows of a grown vocabulary
                stored[target.module] = shape_of(target)
        if self.model.tied and not self.tied:
            stored.setdefault(HEAD, stored[EMBEDDING])
        return {name: shape for name, shape in stored.items() if not (self.tied and name == HEAD)}

    def read(self, name: str) -> Floats:
        """One merged tensor, fp32. Raises AdapterError if the adapter makes it NaN or infinite."""
        weight = self.model.read(EMBEDDING if self.model.tied and name == HEAD else name)
        if self._plan is not None:
            weight = tuner_of(self._plan).merge(name, weight, self._plan, self._tensors)
        if not np.isfinite(weight).all():
            raise AdapterError(
                msg(
                    "{name} contains NaN or infinite values after merging. The training diverged or a file is damaged: "
                    "use an earlier checkpoint of the run.",
                    name=name,
                )
            )
        return np.ascontiguousarray(weight, np.float32).reshape(weight.shape)  # a scalar would become a vector of one


def check_float16(name: str, weight: Floats, times: float = 1.0) -> None:
    """Raise ModelError if a value would become infinite in float16. `times`: how many times float16's maximum the number format can hold,
    for formats that store a block's scale as float16."""
    largest = float(np.abs(weight).max(initial=0.0))
    if largest >= FLOAT16_ENDS * times:
        ends = (
            msg("float16 only reaches 65504")
            if times == 1
            else msg("this format's blocks only reach {value}", value=f"{65504 * times:.4g}")
        )
        raise ModelError(
            msg(
                "{name} has a value of {largest}, but {ends}. Export it as bfloat16 or float32 instead.",
                name=name,
                largest=f"{largest:.6g}",
                ends=ends,
            )
        )


def check_float16_base(weights: MergedWeights, names: Mapping[str, float]) -> None:
    """The same check on the base before anything is written: stored tensors are scanned, and only a tensor that exceeds the limit is
    merged to see the result. `names` maps the tensors to be written to their `times`."""
    stored = weights.model.weights()
    for name, times in names.items():
        if (name, times) in weights.looked_through:
            continue
        of_base = EMBEDDING if name not in stored else name
        if (
            of_base in stored
            and stored[of_base].dtype != "F16"
            and weights.model.largest(of_base) >= FLOAT16_ENDS * times
        ):
            check_float16(name, weights.read(name), times)
        weights.looked_through.add((name, times))
