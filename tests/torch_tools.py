"""What the tests of the torch backend share: sessions ready to train, and the same done with plain PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend is not installed")
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

from finetune_local.backend import Session, backends
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import objectives
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import tuners
from tasks import batch_of, plan_of

# PEFT's own entry points use a name that transformers has deprecated; the backend does not go through them.
PLAIN_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TORCH = backends()["torch"]
SFT = objectives()["sft"]
RATE = 3e-3


def ready(
    folder: Path, method: str = "lora", precision: Any = "fp32", training: Any = None, **settings: Any
) -> Session:
    session = TORCH.load(folder, precision, "cpu")
    session.attach("a", plan_of(folder, method, **settings), seed=7)
    session.prepare("a", TrainingSettings(**(training or {})))
    return session


def train(session: Session, steps: int, batches: Sequence[Batch] | None = None) -> list[float]:
    return [session.step(batches or [batch_of(seed=i % 4)], SFT, RATE).loss for i in range(steps)]


def plain_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Full logits, attention mask, cross-entropy: the way of every tutorial."""
    ids = torch.from_numpy(batch.ids.astype(np.int64))
    attention = (torch.arange(ids.shape[1])[None] < torch.from_numpy(batch.lengths)[:, None]).long()
    labels = torch.where(torch.from_numpy(batch.mask), ids, -100)
    logits = model(input_ids=ids, attention_mask=attention).logits.float()
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


def plain_peft(folder: Path, plan: AdapterPlan, start: Mapping[str, np.ndarray]) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = {k: v for k, v in tuners()["low_rank"].config(plan).items() if k not in ("peft_type", "inference_mode")}
    model = get_peft_model(base, LoraConfig(**config))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            stem, _, tail = name.rpartition(".")
            ours = f"{stem}.default.{tail}" if tail == "weight" else f"{name}.default.weight"
            own[ours].copy_(torch.from_numpy(value))
    return model
