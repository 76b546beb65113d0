"""Adapters made on the spot: random tensors that fit a model folder, written as training writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finetune_local.adapter_format import write_adapter
from finetune_local.adapters.identity import write_identity
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.tuners import tuners


def made_adapter(
    base: Path,
    folder: Path,
    seed: int = 0,
    dead: bool = False,
    plain: bool = False,
    run: str | None = None,
    strength: float = 0.3,
) -> Path:
    """Write a LoRA of rank 2 for `base` into `folder`; `dead` has B = 0, `plain` has no finetune_local.json."""
    model = ModelFolder.open(base)
    tuner = tuners()["low_rank"]
    plan = tuner.plan("lora", LowRankSettings(rank=2), model.info())
    rng = np.random.default_rng(seed)
    tensors = {
        name: np.zeros(shape, np.float32)
        if dead and ".lora_B." in name
        else rng.normal(0, strength, shape).astype(np.float32)
        for name, shape in tuner.shapes(plan).items()
    }
    write_adapter(folder, plan, tensors, model.name)
    if not plain:
        write_identity(folder, model.identity(), run, {"method": "lora"})
    return folder
