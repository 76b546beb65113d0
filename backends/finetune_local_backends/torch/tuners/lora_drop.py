"""LoRA-drop on torch: LoRA's layers, several of which may share A and B. See spec/tuners/lora_drop.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from finetune_local.spec.batch import Floats
from finetune_local.spec.low_rank.peft import A, B
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.lora_drop import LoraDropSettings, stems
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, TorchLayers, attach_layers, linear_at
from finetune_local_backends.torch.tuners.low_rank import LowRankLayer


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    plain, stem = cast(LoraDropSettings, plan.settings).plain, stems(plan)
    layers: dict[str, AdapterLayer] = {}
    for target in plan.targets:
        linear_at(base, target)
        name = PREFIX + stem[target.module]
        layers[target.module] = LowRankLayer(given[name + A], given[name + B], plain.scale, plain.dropout)
    return layers


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchLayers:
    """See adapter.py."""
    return attach_layers(base, plan, tensors, _place)
