"""LoRA-drop on MLX: LoRA's slots, several of which may name the same A and B. See spec/tuners/lora_drop.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from finetune_local.spec.low_rank_peft import A, B
from finetune_local.spec.low_rank_settings import LowRankSettings
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.lora_drop import LoraDropSettings, stems
from finetune_local_backends.mlx.model import Model
from finetune_local_backends.mlx.tuners import Adapter, Floats
from finetune_local_backends.mlx.tuners.low_rank import LowRankSlot
from finetune_local_backends.mlx.tuners.sites import SiteAdapter


class NamedSlot(LowRankSlot):
    """A LoRA at `module` whose tensors are called after `stem`."""

    def __init__(self, module: str, settings: LowRankSettings, stem: str) -> None:
        super().__init__(module, settings)
        self.names = {"a": PREFIX + stem + A, "b": PREFIX + stem + B}


def attach(model: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> Adapter:
    """A and B beside every target."""
    plain, stem = cast(LoraDropSettings, plan.settings).plain, stems(plan)
    slots = [(model.linear(t), NamedSlot(t.module, plain, stem[t.module])) for t in plan.targets]
    return SiteAdapter(tensors, slots)
