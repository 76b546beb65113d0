"""How much memory training will need, before anything is loaded.

An estimate, not a promise: allocators, kernels and other programs take what they take; the measured peak stands in the
run's events. For SmolLM2-135M on a Linux CPU it gave 0.89 to 1.08 of the measured peak in eight cases (torch and MLX, LoRA
and full, fp32, bf16 and 4-bit, 512 to 2048 tokens, MLX checkpointed), and 0.60 for torch checkpointed, where glibc's heap
keeps a gigabyte of freed blocks (1.09 with MALLOC_MMAP_THRESHOLD_=1000000). GPUs have not been measured.

    weights      4, 2 bytes each in fp32, bf16; in 8-bit and 4-bit the linear layers of the blocks take 1 and 0.56 bytes
                 (0.5 and the scales of groups of 64), everything else 2 (4 on a CPU, which computes in fp32)
    trainable    4 bytes for each trained number and 4 for its gradient
    optimizer    AdamW's two states: 8 bytes, with 8-bit states 2
    activations  what the backward pass needs of one micro-batch of N tokens (below), plus the head at supervised positions
    runtime      the process and its libraries

One block keeps, per token: inputs of its projections and norms, attention's queries, keys, values and output, and the MLP's
three inner vectors and their product: a·(7h + 2k + 4f) + 8h bytes, with h the width, k the width of the keys, f that of the
MLP, a the bytes of an activation; the 8h are the fp32 copies in the two norms. Each adapted layer keeps its low-rank vector
as well. With gradient checkpointing only each block's input is kept (a·h), and one block at a time is computed again.
Fused attention keeps no matrix of scores.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_local.models.folder import ModelFolder
from finetune_local.spec.families import trainable_parameters
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import RunSpec
from finetune_local.spec.targets import linear_modules

MICRO_BATCH_TOKENS = 1024  # what a spec that leaves it open is taken to mean
_SUPERVISED = 0.25  # usual share of supervised tokens
_HEAD_NUMBERS = 1 << 24  # logits that exist at once, at most; the backends cut larger batches
_RUNTIME = 500_000_000
_TIGHT = 0.8
_BLOCK_BYTES = {"fp32": 4.0, "bf16": 2.0, "8-bit": 1.0, "4-bit": 0.5625}
_STATE_BYTES = {"adamw": 8, "paged-adamw": 8, "adamw-8bit": 2, "paged-adamw-8bit": 2}


@dataclass(frozen=True)
class Estimate:
    """Bytes, by what they are for."""

    weights: int
    trainable: int
    optimizer: int
    activations: int
    runtime: int = _RUNTIME

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trainable + self.optimizer + self.activations + self.runtime


def estimate(model: ModelFolder, spec: RunSpec, plan: AdapterPlan, device: str = "cpu") -> Estimate:
    """Memory for training `plan` on `model`. `device` is the kind: "cpu", "cuda" or "metal".

    What the spec leaves open is taken as its usual value; give the resolved spec of a run for its own.
    """
    precision = spec.model.precision or ("fp32" if device == "cpu" else "bf16")
    wide = precision == "fp32" or (device == "cpu" and precision != "bf16")
    activation = 4 if wide else 2
    inner = sum(t.in_features * t.out_features for t in linear_modules(model.weights()).values())
    outer = model.parameters - inner
    trained = trainable_parameters(plan)
    return Estimate(
        weights=int(inner * _BLOCK_BYTES[precision] + outer * activation),
        trainable=8 * trained,
        optimizer=_STATE_BYTES[spec.training.optimizer] * trained,
        activations=_activations(model, spec, plan, activation),
    )


def verdict(estimate: Estimate, device_bytes: int) -> str:
    """ "fits" up to four fifths of the memory, "tight" up to all of it, else "too big"."""
    share = estimate.total / max(1, device_bytes)
    return "fits" if share <= _TIGHT else "tight" if share <= 1 else "too big"


def _activations(model: ModelFolder, spec: RunSpec, plan: AdapterPlan, activation: int) -> int:
    tokens = spec.training.micro_batch_tokens or MICRO_BATCH_TOKENS
    text, hidden = model.text_config, model.hidden_size
    heads = int(text.get("num_attention_heads") or 1)
    head_dim = int(text.get("head_dim") or hidden // heads)
    keys = head_dim * int(text.get("num_key_value_heads") or heads)
    mlp = int(text.get("intermediate_size") or 4 * hidden)
    block = activation * (5 * hidden + 2 * head_dim * heads + 2 * keys + 4 * mlp) + 8 * hidden
    rank = int(getattr(plan.settings, "rank", 0))
    low_rank = 4 * rank * len(plan.targets)  # over all blocks
    if spec.training.gradient_checkpointing:
        per_token = model.blocks * activation * hidden + block + low_rank // max(1, model.blocks)
    else:
        per_token = model.blocks * block + low_rank
    logits = min(_HEAD_NUMBERS, int(tokens * _SUPERVISED) * model.vocabulary)
    head = logits * (4 + activation)  # in fp32, and their gradient
    return tokens * per_token + head
