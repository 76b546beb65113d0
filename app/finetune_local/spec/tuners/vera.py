"""VeRA: one pair of frozen random matrices shared by all layers, and two trained vectors per layer.

Kopiczko et al. 2024, arXiv:2310.11454, section 3: y = x·Wᵀ + b ∘ (d ∘ (x·Aᵀ))·Bᵀ. Shapes as in PEFT: A (rank, max in),
B (max out, rank), sliced to each layer's sizes; b (out,), d (rank,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np

from finetune_local.spec.initial import kaiming_uniform
from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.targets import AtLinear, check_inside, saved_outputs, select_linear
from finetune_local.spec.tuners import PREFIX, Array, Preset, Source, Tuner
from finetune_local.system.errors import AdapterError
from finetune_local.system.fields import Settings, setting
from finetune_local.system.messages import Message, msg

A, B = "base_model.vera_A", "base_model.vera_B"
LAMBDA_B, LAMBDA_D = ".vera_lambda_b", ".vera_lambda_d"


class VeraSettings(AtLinear):
    """Settings of VeRA."""

    rank: int = setting(256, help="Width of the low-rank update.", group="method", ge=1, le=65536)
    vera_start: float = setting(
        0.1, help="Initial value of VeRA's vector d, the factors of the rank.", group="method", gt=0
    )


class Vera(Tuner):
    """VeRA. A target's in_features is the width of the shared A, because PEFT's files do not record each layer's own.

    The rank may exceed a layer's sizes, as in the paper (table 8): each rank is two random vectors and one trained number.
    """

    key = "vera"
    settings = VeraSettings
    peft_types = ("VERA",)

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Select the linear layers."""
        chosen = cast(VeraSettings, settings)
        found = select_linear(base.weights, chosen.targets, chosen.layers)
        widest = max(target.in_features for target in found)
        targets = tuple(Target(target.module, widest, target.out_features) for target in found)
        return AdapterPlan(method, self.key, chosen, targets)

    def lr_factor(self, settings: Settings) -> float:
        """As in the paper's comparisons."""
        return 10.0

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """Frozen A and B; rank + out trained parameters per target."""
        rank = cast(VeraSettings, plan.settings).rank
        result: dict[str, tuple[int, ...]] = {
            A: (rank, max(target.in_features for target in plan.targets)),
            B: (max(target.out_features for target in plan.targets), rank),
        }
        for target in plan.targets:
            result[PREFIX + target.module + LAMBDA_B] = (target.out_features,)
            result[PREFIX + target.module + LAMBDA_D] = (rank,)
        return result

    def lr_multipliers(self, plan: AdapterPlan) -> Mapping[str, float]:
        """A and B are frozen."""
        return {A: 0.0, B: 0.0}

    def saved_activations(self, plan: AdapterPlan) -> float:
        """The inputs of the two elementwise products."""
        return cast(VeraSettings, plan.settings).rank * len(plan.targets) + saved_outputs(plan.targets)

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """A and B Kaiming uniform, U(−√(6/in), √(6/in)); d constant, b zero, so the output is unchanged."""
        start = np.float32(cast(VeraSettings, plan.settings).vera_start)
        result: dict[str, Array] = {}
        for name, shape in self.shapes(plan).items():
            if name in (A, B):
                result[name] = kaiming_uniform(seed, name, shape) * np.float32(math.sqrt(6.0))
            else:
                result[name] = np.full(shape, start if name.endswith(LAMBDA_D) else 0.0, np.float32)
        return result

    def fits(self, target: Target, shape: tuple[int, ...]) -> bool:
        """A may be wider than the layer's input."""
        return len(shape) == 2 and target.out_features == shape[0] and target.in_features >= shape[1]

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """PEFT's VeraConfig as JSON. The file includes A and B, so PEFT's `projection_prng_key` is not used."""
        settings = cast(VeraSettings, plan.settings)
        return {
            "peft_type": "VERA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "r": settings.rank,
            "d_initial": settings.vera_start,
            "vera_dropout": 0.0,
            "save_projection": True,
            "projection_prng_key": 0,
            "bias": "none",
            "fan_in_fan_out": False,
            "target_modules": [target.module for target in plan.targets],
        }

    def read(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """From PEFT's config and the tensors. Raises AdapterError if A and B are missing."""
        if A not in shapes or B not in shapes:
            raise AdapterError(
                msg(
                    "this VeRA adapter was saved without its random matrices, which only the PyTorch version that "
                    "created them can recreate. Save it with PEFT's save_projection=True."
                )
            )
        if config.modules_to_save or config.bias != "none":
            raise AdapterError(
                msg("adapter_config.json uses 'modules_to_save' or 'bias', which this version cannot read.")
            )
        ends = sorted(name for name in shapes if name.endswith(LAMBDA_B))
        modules = [name.removeprefix(PREFIX).removesuffix(LAMBDA_B) for name in ends]
        check_inside(modules, "VeRA")
        targets = [Target(m, shapes[A][1], shapes[name][0]) for m, name in zip(modules, ends, strict=True)]
        try:
            start = config.d_initial or 0.1
            settings = VeraSettings(rank=shapes[A][0], vera_start=start, targets=tuple(modules))
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise AdapterError(msg("adapter_config.json has no usable d_initial ({error}).", error=reason)) from None
        return AdapterPlan("vera", self.key, settings, tuple(targets))

    def sum_refusal(self, plan: AdapterPlan) -> Message | None:
        """Additive."""
        return None

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """W + diag(b)·B·diag(d)·A."""
        module = PREFIX + name.removesuffix(".weight")
        if not name.endswith(".weight") or module + LAMBDA_B not in tensors:
            return weight
        left = tensors[module + LAMBDA_B][:, None] * tensors[B][: weight.shape[0]]
        right = tensors[module + LAMBDA_D][:, None] * tensors[A][:, : weight.shape[1]]
        return cast(Array, (weight + left @ right).astype(np.float32))


TUNER = Vera()

PRESETS = (
    Preset(
        key="vera",
        title="VeRA",
        summary="LoRA with frozen random matrices that all layers share; trains two vectors per layer, can be merged.",
        paper="arXiv:2310.11454",
        defaults={"method.rank": 256},
    ),
)
