"""The low-rank update W + s·B·A, and DoRA's split of it into magnitude and direction.

LoRA: Hu et al. 2021, arXiv:2106.09685, section 4.1. rsLoRA's scaling alpha/√r: Kalajdzievski 2023, arXiv:2312.03732.
DoRA: Liu et al. 2024, arXiv:2402.09353, section 4.1 (norm over the input axis, not differentiated through).
Shapes: A (rank, in), B (out, rank), magnitude (out,).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np

from finetune_local.errors import AdapterError
from finetune_local.spec.families import PREFIX, Array, Family, Source, check_rank
from finetune_local.spec.fields import Settings, setting
from finetune_local.spec.initial import kaiming_uniform
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.targets import AtLinear, select_linear

A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


class UpdateSettings(AtLinear):
    """What every update beside linear layers has."""

    alpha: float | None = setting(
        None,
        help="Strength of the update: it is scaled by alpha/rank. Automatic: twice the rank.",
        group="method",
        gt=0,
    )
    dropout: float = setting(
        0.0, help="Chance that an input of the update is zeroed in training.", group="method", ge=0, lt=1
    )


class LowRankSettings(UpdateSettings):
    """Settings of LoRA and its kin."""

    rank: int = setting(16, help="Width of the low-rank update.", group="method", ge=1, le=4096)
    scaling: Literal["standard", "rslora"] = setting(
        "standard", help="alpha/rank, or rsLoRA's alpha/√rank, which suits high ranks.", group="method"
    )
    use_dora: bool = setting(
        False, help="Train magnitude and direction apart (DoRA).", group="method", flag="--use-dora"
    )

    @property
    def effective_alpha(self) -> float:
        """alpha, or twice the rank where it is automatic."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """The factor s of s·B·A."""
        return self.effective_alpha / (math.sqrt(self.rank) if self.scaling == "rslora" else self.rank)


class LowRank(Family):
    """See Family."""

    key = "low_rank"
    settings = LowRankSettings
    peft_types = ("LORA",)

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Select the linear layers; see Family."""
        chosen = cast(LowRankSettings, settings)
        targets = select_linear(base.weights, chosen.targets, chosen.layers)
        for target in targets:
            check_rank(chosen.rank, target)
        return AdapterPlan(method, self.key, chosen, targets)

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """rank·(in + out) numbers per target, and out more with DoRA."""
        settings = cast(LowRankSettings, plan.settings)
        result: dict[str, tuple[int, ...]] = {}
        for target in plan.targets:
            result[PREFIX + target.module + A] = (settings.rank, target.in_features)
            result[PREFIX + target.module + B] = (target.out_features, settings.rank)
            if settings.use_dora:
                result[PREFIX + target.module + MAGNITUDE] = (target.out_features,)
        return result

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """A uniform, B zero, so that nothing changes; with DoRA the magnitude is ‖W‖ of each row."""
        result: dict[str, Array] = {}
        for name, shape in self.shapes(plan).items():
            if name.endswith(A):
                result[name] = kaiming_uniform(seed, name, shape)
            elif name.endswith(B):
                result[name] = np.zeros(shape, np.float32)
            else:
                weight = source.weight(name.removeprefix(PREFIX).removesuffix(MAGNITUDE) + ".weight")
                result[name] = np.linalg.norm(weight, axis=1).astype(np.float32)
        return result

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """PEFT's LoraConfig as JSON, with the modules' full names."""
        settings = cast(LowRankSettings, plan.settings)
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "r": settings.rank,
            "lora_alpha": settings.effective_alpha,
            "lora_dropout": settings.dropout,
            "use_rslora": settings.scaling == "rslora",
            "use_dora": settings.use_dora,
            "bias": "none",
            "fan_in_fan_out": False,
            "target_modules": [target.module for target in plan.targets],
        }

    def read(self, config: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """From PEFT's config; the module names are taken from the tensors, which cannot lie about them."""
        c = cast(Mapping[str, Any], config)
        for field in ("rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "exclude_modules"):
            if c.get(field):
                raise AdapterError(f"adapter_config.json uses '{field}', which this version cannot read.")
        if lacking := [field for field in ("r", "lora_alpha") if not c.get(field)]:
            raise AdapterError(f"adapter_config.json lacks '{lacking[0]}'. Copy the adapter again.")
        start = str(c.get("init_lora_weights"))
        if start.lower().startswith(("pissa", "olora", "corda", "loftq")):
            raise AdapterError(
                f"this adapter was begun by '{start}', which changed the base's weights too, so it does not fit the base as it "
                "is. Save it as plain LoRA with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
            )
        targets = []
        for name in sorted(shapes):
            if not name.endswith(A) or len(shapes[name]) != 2:
                continue
            module = name.removeprefix(PREFIX).removesuffix(A)
            if PREFIX + module + B not in shapes:
                raise AdapterError(f"the adapter has lora_A but no lora_B for {module}: the file is incomplete.")
            targets.append(Target(module, shapes[name][1], shapes[PREFIX + module + B][0]))
        try:
            settings = LowRankSettings(
                rank=int(c["r"]),
                alpha=float(c["lora_alpha"]),
                dropout=float(c.get("lora_dropout") or 0.0),
                scaling="rslora" if c.get("use_rslora") else "standard",
                use_dora=bool(c.get("use_dora")),
                targets=tuple(target.module for target in targets),
            )
        except (KeyError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise AdapterError(f"adapter_config.json has no usable rank, alpha or dropout ({said}).") from None
        return AdapterPlan("dora" if settings.use_dora else "lora", self.key, settings, tuple(targets))

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """W + s·B·A, or m·(W + s·B·A)/‖W + s·B·A‖ with DoRA."""
        module = PREFIX + name.removesuffix(".weight")
        if not name.endswith(".weight") or module + A not in tensors:
            return weight
        settings = cast(LowRankSettings, plan.settings)
        merged = weight + np.float32(settings.scale) * (tensors[module + B] @ tensors[module + A])
        if settings.use_dora:
            norm = np.linalg.norm(merged, axis=1)
            merged = merged * (tensors[module + MAGNITUDE] / norm)[:, None]
        return cast(Array, merged.astype(np.float32))


FAMILY = LowRank()
