"""LoRA-drop on torch: LoRA's slots, several of which may hold the same A and B. See spec/tuners/lora_drop.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from finetune_local.spec.low_rank_peft import A, B
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.lora_drop import LoraDropSettings, stems
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.tuners.low_rank import LowRankSlot
from finetune_local_backends.torch.tuners.sites import SiteAdapters, Slot, linear_at


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, Slot]:
    plain, stem = cast(LoraDropSettings, plan.settings).plain, stems(plan)
    slots: dict[str, Slot] = {}
    for target in plan.targets:
        linear_at(base, target)
        name = PREFIX + stem[target.module]
        slots[target.module] = LowRankSlot(given[name + A], given[name + B], plain.scale, plain.dropout)
    return slots


def adapters(base: Base) -> SiteAdapters:
    """See the package."""
    return SiteAdapters(base, _place)
