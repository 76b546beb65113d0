"""All weights are trained: the "adapter" is the trained weights themselves, under their own names.

PEFT has no such type; on disk it is the same pair of files with `"peft_type": "FULL"` (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from finetune_local.spec.families import Array
from finetune_local.spec.fields import Settings
from finetune_local.spec.plan import AdapterPlan, Target, WeightInfo

PREFIX = "base_model.model."


class FullSettings(Settings):
    """Full fine-tuning has no settings of its own."""


class Full:
    """See Family. A target here is one weight; 1-D weights (norms) have in_features 0."""

    key = "full"
    settings: type[Settings] = FullSettings

    def plan(self, method: str, settings: Settings, weights: Mapping[str, WeightInfo]) -> AdapterPlan:
        """Every weight of the base; see Family."""
        return AdapterPlan(method, self.key, settings, tuple(_target(n, w.shape) for n, w in sorted(weights.items())))

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """The base's own shapes; a target's module is here the whole weight name."""
        return {
            PREFIX + t.module: (t.out_features, t.in_features) if t.in_features else (t.out_features,)
            for t in plan.targets
        }

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """Our own type in PEFT's file."""
        return {"peft_type": "FULL", "task_type": "CAUSAL_LM", "inference_mode": True, "method": plan.method}

    def read(self, config: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """See Family."""
        targets = tuple(_target(name.removeprefix(PREFIX), shape) for name, shape in sorted(shapes.items()))
        return AdapterPlan(str(config.get("method", "full")), self.key, FullSettings(), targets)

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """The trained weight stands in for the base's."""
        return tensors[PREFIX + name].astype(np.float32) if PREFIX + name in tensors else weight


def _target(name: str, shape: tuple[int, ...]) -> Target:
    return Target(name, shape[1] if len(shape) > 1 else 0, shape[0])


FAMILY = Full()
