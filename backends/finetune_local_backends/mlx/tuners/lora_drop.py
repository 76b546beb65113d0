"""LoRA-drop on MLX: LoRA's layers, several of which may share A and B. See spec/tuners/lora_drop.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from finetune_local.spec.batch import Floats
from finetune_local.spec.low_rank.peft import A, B
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.spec.tuners.lora_drop import LoraDropSettings, stems
from finetune_local_backends.mlx.base.model import Model
from finetune_local_backends.mlx.layers.wrapped import MlxLayers
from finetune_local_backends.mlx.tuners.low_rank import LowRankLayer


class NamedLayer(LowRankLayer):
    """A LoRA at `module` whose tensors are named after `stem`."""

    def __init__(self, module: str, settings: LowRankSettings, stem: str) -> None:
        super().__init__(module, settings)
        self.names = {"a": PREFIX + stem + A, "b": PREFIX + stem + B}


def attach(base: Model, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxLayers:
    """A and B beside every target."""
    plain, stem = cast(LoraDropSettings, plan.settings).plain, stems(plan)
    layers = [(base.linear(t), NamedLayer(t.module, plain, stem[t.module])) for t in plan.targets]
    return MlxLayers(tensors, layers)
