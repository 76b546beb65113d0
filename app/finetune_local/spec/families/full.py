"""All weights are trained: the "adapter" is the trained weights themselves, under their own names.

PEFT has no such type; on disk it is the same pair of files with a type of our own (docs/methods.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from finetune_local.spec.families import PREFIX, Array, Family, Source
from finetune_local.spec.fields import Settings
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target

_CONSTANT = "rotary_emb.inv_freq"  # stored by some old files; computed, never trained


class FullSettings(Settings):
    """Full fine-tuning has no settings of its own."""


class Full(Family):
    """See Family. A target here is one weight, its module the whole name; 1-D weights (norms) have in_features 0."""

    key = "full"
    settings = FullSettings

    def refusal(self, settings: Settings, precision: str) -> str | None:
        """See Family."""
        if precision not in ("8-bit", "4-bit"):
            return None
        return f"it trains the base's own weights, which {precision} cannot hold. Use --precision bf16 or fp32, or --method qlora."

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Every weight of the base; see Family."""
        targets = tuple(_target(n, w.shape) for n, w in sorted(base.weights.items()) if not n.endswith(_CONSTANT))
        return AdapterPlan(method, self.key, settings, targets)

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """The base's own shapes."""
        return {
            PREFIX + t.module: (t.out_features, t.in_features) if t.in_features else (t.out_features,)
            for t in plan.targets
        }

    def apart(self, plan: AdapterPlan) -> str | None:
        """See Family."""
        return "it changes the weights that the others stand on. Train it alone."

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """The base's own values, each read when it is asked for: all at once would be another copy of the model."""
        return _Own([PREFIX + target.module for target in plan.targets], source)

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """The trained weight stands in for the base's."""
        return tensors[PREFIX + name].astype(np.float32) if PREFIX + name in tensors else weight


class _Own(Mapping[str, Array]):
    """The base's weights under their names in an adapter."""

    def __init__(self, names: list[str], source: Source) -> None:
        self._names, self._source = names, source

    def __getitem__(self, name: str) -> Array:
        return self._source.weight(name.removeprefix(PREFIX))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _target(name: str, shape: tuple[int, ...]) -> Target:
    return Target(name, shape[1] if len(shape) > 1 else 0, shape[0])


FAMILY = Full()
