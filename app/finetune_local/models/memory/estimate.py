"""Estimate the memory of a training run before anything is loaded, and judge whether a model fits on a device.

Allocators, kernels and other programs add their own; the measured peak is in the run's events. Predicted / measured for SmolLM2-135M
on a Linux CPU with 1024 tokens per micro-batch, from `benchmarks/memory.py --steps 2`: torch bf16 lora 1.03, dora 1.03, vera 1.02,
adapter 1.03, prefix 1.04, adalora 1.02, prompt-ensemble 0.91; torch fp32 lora 0.99, full 1.14; MLX fp32 lora 1.04. GPUs have not been
measured.

    weights      4 or 2 bytes per parameter in fp32 or bf16. In 8-bit and 4-bit the blocks' linear layers take 1 and 0.5625 bytes (0.5
                 plus the scales of groups of 64; NF4 0.516, with quantised scales), the rest 2 (4 on a CPU, which computes in fp32)
    trainable    4 bytes per parameter of the adapter, 4 for the gradient of each trained one; for the base's own weights in bf16
                 another 2 for the copy used in the forward pass
    optimizer    AdamW's two states per trained parameter: 8 bytes, in 8-bit 2; AdaLoRA's tracker 16
    activations  saved for backward by one micro-batch of N tokens (below), plus the head at supervised positions
    runtime      the process and its libraries

Per token, a block saves the inputs of its norms in fp32, attention's queries, keys, values and output, and the MLP's three hidden
vectors: 8h + a·(2q + 2k + 3f) bytes, with h the hidden size, q and k the sizes of queries and keys, f the MLP's, a the bytes of an
activation. The adapter adds its own (Tuner.saved_activations). Blocks below the lowest trained one save nothing. With gradient
checkpointing only each block's input is saved (a·h), and one block at a time is recomputed. Fused attention saves no score matrix.
A quarter is added for the current block's gradients and memory the allocator has not returned. Virtual tokens lengthen every
row; an ensemble multiplies everything by its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal, cast

from finetune_local.models.catalog import catalog
from finetune_local.models.folder import ModelFolder
from finetune_local.models.install import source_of
from finetune_local.models.memory.shape import Measured, Shape
from finetune_local.spec.base.config import size_of
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import Precision, RunSpec, parse_spec, plan_method
from finetune_local.spec.targets import block_of, is_embedding, linear_modules
from finetune_local.spec.tuners import recommended, trainable_parameters, tuner_of
from finetune_local.system.errors import SpecError

_STEPS = 1000  # of a spec that leaves them open
MICRO_BATCH_TOKENS = 1024  # the value for a spec that leaves it open
_SUPERVISED = 0.25  # usual share of supervised tokens
_HEAD_NUMBERS = 1 << 24  # logits that exist at once, at most; the backends cut larger batches
_RUNTIME = 500_000_000
_TIGHT = 0.8
_FREED = 1.25  # gradients of the current block, and memory the allocator has not returned; measured on CPUs
_ROW = 128  # usual tokens of a row, to which virtual tokens are added
_TRACKED = 16  # a tracker's importance and its uncertainty, and the step's values and gradients in numpy
_BLOCK_BYTES = {"fp32": 4.0, "bf16": 2.0, "8-bit": 1.0, "4-bit": 0.5625}
_NF4_BYTES = 0.516
_STATE_BYTES = {"adamw": 8, "paged-adamw": 8, "adamw-8bit": 2, "paged-adamw-8bit": 2}

Word = Literal["fits", "tight", "too big"]
WAYS = tuple((preset.key, cast("Precision", precision)) for preset in recommended() for precision in preset.estimated)
"""Pairs of method and precision, the recommended methods first (Preset.estimated)."""


@dataclass(frozen=True)
class Estimate:
    """Bytes by purpose."""

    weights: int
    trainable: int
    optimizer: int
    activations: int
    runtime: int = _RUNTIME

    @property
    def total(self) -> int:
        """Sum of all."""
        return self.weights + self.trainable + self.optimizer + self.activations + self.runtime


def estimate(
    model: Measured, spec: RunSpec, plan: AdapterPlan, device: str = "cpu", largest_example: int = 0
) -> Estimate:
    """Memory for training `plan` on `model`, a ModelFolder or a Shape. `device` is the kind: "cpu", "cuda" or "metal".

    A micro-batch has `largest_example` tokens if that is more than the spec allows: an example is never split. The reference of an
    objective adds nothing to the peak: its forward pass saves no activations, and is over when the training pass begins.
    Open settings count with their usual values; pass a resolved spec for exact ones.
    """
    precision = spec.model.precision or ("fp32" if device == "cpu" else "bf16")
    wide = precision == "fp32" or (device == "cpu" and precision != "bf16")
    activation = 4 if wide else 2
    inner = sum(t.in_features * t.out_features for t in linear_modules(model.weights()).values())
    outer = model.parameters - inner
    nf4 = precision == "4-bit" and spec.model.quantisation == "nf4"
    tuner, trained = tuner_of(plan), trainable_parameters(plan)
    numbers = sum(math.prod(shape) for shape in tuner.shapes(plan).values())
    copies = 2 * trained if tuner.trains_base and not wide else 0
    tracked = _TRACKED if tuner.tracker(plan, spec.training.max_steps or _STEPS) is not None else 0
    return Estimate(
        weights=int(inner * (_NF4_BYTES if nf4 else _BLOCK_BYTES[precision]) + outer * activation),
        trainable=4 * numbers + 4 * trained + copies,
        optimizer=(_STATE_BYTES[spec.training.optimizer] + tracked) * trained,
        activations=_activations(model, spec, plan, activation, largest_example),
    )


def verdict(estimate: Estimate, device_bytes: int) -> Literal["fits", "tight", "too big"]:
    """ "fits" up to 80 % of the memory, "tight" up to 100 %, else "too big"."""
    share = estimate.total / max(1, device_bytes)
    return "fits" if share <= _TIGHT else "tight" if share <= 1 else "too big"


def _activations(model: Measured, spec: RunSpec, plan: AdapterPlan, activation: int, largest_example: int) -> int:
    tuner = tuner_of(plan)
    tokens = max(spec.training.micro_batch_tokens or MICRO_BATCH_TOKENS, largest_example)
    ensemble_size = tuner.virtual_ids(plan).ensemble_size
    rows = max(1, tokens // _ROW)
    computed = ensemble_size * (tokens + rows * tuner.virtual_tokens(plan))
    text, hidden = model.text_config, model.hidden_size
    heads = size_of(text, "num_attention_heads", "n_head") or 1
    head_dim = size_of(text, "head_dim") or hidden // heads
    keys = head_dim * (size_of(text, "num_key_value_heads") or heads)
    mlp = size_of(text, "intermediate_size") or 4 * hidden
    block = 8 * hidden + activation * (2 * head_dim * heads + 2 * keys + 3 * mlp)
    blocks = model.blocks - _lowest(plan, model.blocks)
    added = activation * tuner.saved_activations(plan)
    if spec.training.gradient_checkpointing:
        per_token = model.blocks * activation * hidden + block + added / max(1, blocks)
    else:
        per_token = blocks * block + added
    logits = min(_HEAD_NUMBERS, int(ensemble_size * tokens * _SUPERVISED) * model.vocabulary)
    head = logits * (4 + activation)  # in fp32, and their gradient
    return int(_FREED * computed * per_token) + head


def _lowest(plan: AdapterPlan, blocks: int) -> int:
    """The lowest block that gradients reach; blocks below the lowest trained parameter save nothing."""
    places = []
    for target in plan.targets:
        block = block_of(target.module + ".")
        if block is not None:
            places.append(block)
        elif is_embedding(target.module.removesuffix(".weight")):
            return 0
    return min(places, default=blocks)


@dataclass(frozen=True)
class Fit:
    """One way to train a model, judged against `memory_bytes`. `checkpointing`: only with gradient checkpointing."""

    method: str
    precision: Precision
    needs: Estimate
    memory_bytes: int
    checkpointing: bool

    @property
    def verdict(self) -> Word:
        """ "fits", "tight" or "too big"."""
        return verdict(self.needs, self.memory_bytes)

    @property
    def reason(self) -> str:
        """The numbers behind the verdict, as a sentence."""
        parts = self.needs
        return (
            f"{self.method} with a base in {self.precision} needs {_size(parts.total)}: weights {_size(parts.weights)}, "
            f"adapter and gradients {_size(parts.trainable)}, optimizer {_size(parts.optimizer)}, "
            f"activations {_size(parts.activations)}{' (computed again to save memory)' if self.checkpointing else ''}, "
            f"the program {_size(parts.runtime)}. The device has {_size(self.memory_bytes)}: {self.verdict}."
        )


def fits(model: Measured, kind: str, memory_bytes: int) -> tuple[Fit, ...]:
    """Every way that can be planned, in the order of WAYS; a model may be too narrow for the default rank, or lack the layers.
    `kind` is the device's: "cpu", "cuda" or "metal".
    """
    info = model.info()
    plans: dict[str, AdapterPlan] = {}
    for key in dict.fromkeys(key for key, _ in WAYS):
        with suppress(SpecError):
            plans[key] = plan_method(parse_spec({"method": {"key": key}}, "fit").method, info)
    return tuple(_fit(model, plans[key], precision, kind, memory_bytes) for key, precision in WAYS if key in plans)


@lru_cache(maxsize=512)
def fits_shape(shape: Shape, kind: str, memory_bytes: int) -> tuple[Fit, ...]:
    """fits() of a shape, cached: lists of models are redrawn often."""
    return fits(shape, kind, memory_bytes)


@lru_cache(maxsize=512)
def shape_like(parameters: int, family: str = "") -> Shape:
    """A shape of about this many parameters, scaled from the nearest catalogue model (of this architecture, if there is one)."""
    known = [entry for entry in catalog() if entry.family == family] or list(catalog())
    nearest = min(known, key=lambda entry: max(entry.parameters, parameters) / min(entry.parameters, parameters))
    return nearest.shape.scaled(parameters)


def _fit(model: Measured, plan: AdapterPlan, precision: Precision, kind: str, memory_bytes: int) -> Fit:
    for checkpointing in (False, True):
        tables = {
            "method": {"key": plan.method},
            "model": {"precision": precision},
            "training": {"gradient_checkpointing": checkpointing},
        }
        needs = estimate(model, parse_spec(tables, "fit"), plan, kind)
        if verdict(needs, memory_bytes) == "fits":
            break
    return Fit(plan.method, precision, needs, memory_bytes, checkpointing)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


@dataclass(frozen=True)
class ModelFacts:
    """What `models info` shows: sizes in bytes, the context length in tokens.

    `source` is where the model came from, "" if unknown; `training_memory_bytes` is by method and precision.
    """

    name: str
    path: str
    family: str
    parameters: int
    bytes: int
    context_length: int
    chat_template: bool
    source: str
    revision: str
    license: str
    training_memory_bytes: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """The object that `models info --json` prints, where `source` is called "from"."""
        return {{"source": "from"}.get(name, name): value for name, value in asdict(self).items()}


def facts_of(model: ModelFolder) -> ModelFacts:
    """The facts of an installed model or a model folder."""
    source = source_of(model.path)
    return ModelFacts(
        name=model.name,
        path=str(model.path),
        family=model.family,
        parameters=model.parameters,
        bytes=model.bytes_on_disk,
        context_length=model.context_length,
        chat_template=model.chat_template() is not None,
        source=source.get("from", ""),
        revision=source.get("revision", ""),
        license=source.get("license", ""),
        training_memory_bytes=training_memory(model),
    )


def training_memory(model: ModelFolder) -> dict[str, int]:
    """Estimated training memory in bytes by method and precision (WAYS): in fp32 on a CPU, in others on a CUDA card."""
    result = {}
    for key, precision in WAYS:
        spec = parse_spec({"method": {"key": key}, "model": {"precision": precision}}, "models info")
        device, place = ("cpu", " on a CPU") if precision == "fp32" else ("cuda", "")
        needed = estimate(model, spec, plan_method(spec.method, model.info()), device)
        result[f"{key}, {precision}{place}"] = needed.total
    return result
