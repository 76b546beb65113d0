"""BitFit: a trained bias for each linear layer.

Ben Zaken et al. 2022, arXiv:2106.10199, section 3. Recent models have few biases or none; a layer without one gets one that
starts at zero. Where the base has one, the vector is its change. Shape: (out,). PEFT has no such type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.targets import AtLinear, select_linear
from finetune_local.spec.tuners import PREFIX, Array, Preset, Source, Tuner
from finetune_local.system.fields import Settings
from finetune_local.system.messages import Message, msg

CHANGE = ".bias_change"
_BIAS = ".bias"


class BiasSettings(AtLinear):
    """Settings of BitFit."""


class Bias(Tuner):
    """BitFit. A target is a bias of the base, by its full name with in_features 0, or a linear layer that has none."""

    key = "bias"
    settings = BiasSettings

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Select the linear layers."""
        chosen = cast(BiasSettings, settings)
        targets = (
            Target(target.module + _BIAS, 0, target.out_features) if target.module + _BIAS in base.weights else target
            for target in select_linear(base.weights, chosen.targets, chosen.layers)
        )
        return AdapterPlan(method, self.key, chosen, tuple(targets))

    def lr_factor(self, settings: Settings) -> float:
        """A step moves each number by at most the learning rate."""
        return 5.0

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """out parameters per target."""
        return {PREFIX + layer_of(target) + CHANGE: (target.out_features,) for target in plan.targets}

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """Zeros, so the output is unchanged."""
        return {name: np.zeros(shape, np.float32) for name, shape in self.shapes(plan).items()}

    def merge_refusal(self, plan: AdapterPlan) -> Message | None:
        """Refused if a layer has no bias in the base, because its architecture has no place for one."""
        without = sorted({t.module.rpartition(".")[2] for t in plan.targets if t.in_features})
        if not without:
            return None
        return msg(
            "the adapter adds a bias to layers that have none in this model ({names}), and its architecture has "
            "no place for one, so it cannot be merged. Keep it as an adapter, or train with --method lora to be "
            "able to merge.",
            names=", ".join(without),
        )

    def sum_refusal(self, plan: AdapterPlan) -> Message | None:
        """Additive."""
        return None

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """The base's bias plus its change."""
        change = tensors.get(PREFIX + name.removesuffix(_BIAS) + CHANGE) if name.endswith(_BIAS) else None
        return weight if change is None else cast(Array, (weight + change).astype(np.float32))


def layer_of(target: Target) -> str:
    """The linear layer a target belongs to."""
    return target.module if target.in_features else target.module.removesuffix(_BIAS)


TUNER = Bias()

PRESETS = (
    Preset(
        key="bitfit",
        title="BitFit",
        summary="Trains a bias for each linear layer, adding one where the model has none: very few parameters.",
        paper="arXiv:2106.10199",
    ),
)
