"""AdaLoRA: the update s·B·diag(E)·A in SVD form, with a rank budget that moves to the matrices that matter most.

Zhang et al. 2023, arXiv:2303.10512; names, scale and arithmetic as in PEFT's ADALORA.
Shapes: A (rank, in), B (out, rank), E (rank, 1). In training every matrix has rank `init_rank` and pruned values of E are 0;
folded, each matrix has its remaining rank. The scale stays that of the initial rank: s = alpha/(init_rank + 1e-5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
from pydantic import model_validator

from finetune_local.spec.initial import normal
from finetune_local.spec.low_rank.settings import UpdateSettings
from finetune_local.spec.numerics.budget import Budget, Schedule
from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.targets import check_inside, saved_inputs, select_linear
from finetune_local.spec.tuners import PREFIX, Array, Preset, Source, Tracker, Tuner, check_rank
from finetune_local.system.errors import AdapterError
from finetune_local.system.fields import Settings, setting
from finetune_local.system.messages import Message, msg

A, B, E = ".lora_A", ".lora_B", ".lora_E"
_SPREAD = 0.02
_NOMINAL = 1000
"""PEFT's config counts the schedule in steps; ours in shares. This is the nominal number of steps written there."""


class AdaLoraSettings(UpdateSettings):
    """Settings of AdaLoRA."""

    init_rank: int = setting(12, help="Rank of every matrix before pruning.", group="method", ge=1, le=4096)
    target_rank: int = setting(8, help="Mean rank at the end.", group="method", ge=1, le=4096)
    tinit: float = setting(
        0.1, help="Share of the steps before the first rank is pruned.", group="method", flag="--tinit", ge=0, lt=1
    )
    tfinal: float = setting(
        0.3,
        help="Share of the steps at the end in which the ranks are fixed.",
        group="method",
        flag="--tfinal",
        ge=0,
        lt=1,
    )
    delta_t: int = setting(1, help="Steps between two prunings.", group="method", ge=1)
    importance_beta1: float = setting(0.85, help="Smoothing factor of the importance.", group="method", gt=0, lt=1)
    importance_beta2: float = setting(
        0.85, help="Smoothing factor of the importance's uncertainty.", group="method", gt=0, lt=1
    )
    orth_weight: float = setting(
        0.5, help="Weight of the penalty that keeps A's rows and B's columns orthogonal.", group="method", ge=0
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.target_rank > self.init_rank:
            raise ValueError(
                msg(
                    "--target-rank is {target}, above --init-rank {init}: ranks only fall. Lower it, or raise "
                    "--init-rank.",
                    target=self.target_rank,
                    init=self.init_rank,
                )
            )
        if self.tinit + self.tfinal >= 1:
            raise ValueError(
                msg(
                    "--tinit {first} and --tfinal {last} leave no steps in which ranks could be pruned. Their sum must "
                    "be below 1.",
                    first=f"{self.tinit:g}",
                    last=f"{self.tfinal:g}",
                )
            )
        return self

    @property
    def rank(self) -> int:
        """The rank that memory is estimated for."""
        return self.init_rank

    @property
    def effective_alpha(self) -> float:
        """alpha; automatic: twice the initial rank."""
        return 2.0 * self.init_rank if self.alpha is None else self.alpha

    @property
    def scale(self) -> float:
        """The factor s, divided as in PEFT."""
        return self.effective_alpha / (self.init_rank + 1e-5)


@dataclass(frozen=True)
class PrunedPlan(AdapterPlan):
    """A folded adapter: `ranks` is the remaining rank of each target."""

    ranks: tuple[int, ...] = ()


def ranks_of(plan: AdapterPlan) -> tuple[int, ...]:
    """The rank of each target's tensors."""
    if isinstance(plan, PrunedPlan):
        return plan.ranks
    return (cast(AdaLoraSettings, plan.settings).init_rank,) * len(plan.targets)


class AdaLora(Tuner):
    """See Tuner."""

    key = "adalora"
    settings = AdaLoraSettings
    peft_types = ("ADALORA",)

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Select the linear layers. Raises SpecError if the initial rank exceeds one."""
        chosen = cast(AdaLoraSettings, settings)
        targets = select_linear(base.weights, chosen.targets, chosen.layers)
        for target in targets:
            check_rank(chosen.init_rank, target, "--init-rank")
        return AdapterPlan(method, self.key, chosen, targets)

    def lr_factor(self, settings: Settings) -> float:
        """E starts at 0 and its gradient passes through small A and B, so the first steps are slow."""
        return 2.0

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """rank·(in + out + 1) parameters per target."""
        result: dict[str, tuple[int, ...]] = {}
        for target, rank in zip(plan.targets, ranks_of(plan), strict=True):
            result[PREFIX + target.module + A] = (rank, target.in_features)
            result[PREFIX + target.module + B] = (target.out_features, rank)
            result[PREFIX + target.module + E] = (rank, 1)
        return result

    def saved_activations(self, plan: AdapterPlan) -> float:
        """The initial rank per target, and the layers' inputs."""
        return sum(ranks_of(plan)) + saved_inputs(plan.targets)

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """A and B from N(0, 0.02²), E zero, so the output is unchanged."""
        return {
            name: np.zeros(shape, np.float32) if name.endswith(E) else normal(seed, name, shape, _SPREAD)
            for name, shape in self.shapes(plan).items()
        }

    def tracker(self, plan: AdapterPlan, steps: int) -> Tracker | None:
        """The rank budget; None for a single step, after which nothing could be compared."""
        settings = cast(AdaLoraSettings, plan.settings)
        if steps < 2:
            return None
        triplets = {t.module: tuple(PREFIX + t.module + part for part in (A, B, E)) for t in plan.targets}
        schedule = Schedule(
            first=settings.init_rank * len(plan.targets),
            last=settings.target_rank * len(plan.targets),
            steps=steps,
            tinit=int(settings.tinit * steps),
            tfinal=int(settings.tfinal * steps),
            every=settings.delta_t,
        )
        names = cast("dict[str, tuple[str, str, str]]", triplets)
        return Budget(names, schedule, settings.importance_beta1, settings.importance_beta2)

    def fold(self, plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
        """Drops the triplets whose E is 0, as PEFT saves it."""
        result: dict[str, Array] = {}
        ranks = []
        for target in plan.targets:
            a, b, e = (tensors[PREFIX + target.module + part] for part in (A, B, E))
            kept = e[:, 0] != 0
            ranks.append(int(kept.sum()))
            parts = {A: a[kept], B: b[:, kept], E: e[kept]}
            result |= {PREFIX + target.module + part: np.ascontiguousarray(value) for part, value in parts.items()}
        return PrunedPlan(plan.method, plan.tuner, plan.settings, plan.targets, tuple(ranks)), result

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """PEFT's AdaLoraConfig as JSON; `rank_pattern` holds the remaining triplets.

        PEFT warns about this field's keys whenever it loads an AdaLoRA, also its own, and then uses them.
        """
        s = cast(AdaLoraSettings, plan.settings)
        pattern = None
        if isinstance(plan, PrunedPlan):
            pattern = {
                target.module + E: [i < rank for i in range(s.init_rank)]
                for target, rank in zip(plan.targets, plan.ranks, strict=True)
            }
        return {
            "peft_type": "ADALORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "init_r": s.init_rank,
            "target_r": s.target_rank,
            "lora_alpha": s.effective_alpha,
            "lora_dropout": s.dropout,
            "total_step": _NOMINAL,
            "tinit": round(s.tinit * _NOMINAL),
            "tfinal": round(s.tfinal * _NOMINAL),
            "deltaT": s.delta_t,
            "beta1": s.importance_beta1,
            "beta2": s.importance_beta2,
            "orth_reg_weight": s.orth_weight,
            "rank_pattern": pattern,
            "bias": "none",
            "fan_in_fan_out": False,
            "target_modules": [target.module for target in plan.targets],
        }

    def read(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """From PEFT's config; modules and ranks come from the tensors' shapes. Raises AdapterError."""
        given = {"modules_to_save": config.modules_to_save, "alpha_pattern": config.alpha_pattern}
        for field in ("modules_to_save", "layer_replication", "alpha_pattern"):
            if given.get(field) or field in config.unread:
                raise AdapterError(
                    msg("adapter_config.json uses '{field}', which this version cannot read.", field=field)
                )
        targets, ranks = [], []
        for name in sorted(shapes):
            if not name.endswith(A) or len(shapes[name]) != 2:
                continue
            module = name.removeprefix(PREFIX).removesuffix(A)
            if PREFIX + module + B not in shapes or PREFIX + module + E not in shapes:
                raise AdapterError(
                    msg("the adapter has lora_A but no lora_B or lora_E for {module}: it is incomplete.", module=module)
                )
            targets.append(Target(module, shapes[name][1], shapes[PREFIX + module + B][0]))
            ranks.append(shapes[name][0])
        check_inside((target.module for target in targets), "AdaLoRA")
        rank, alpha = config.rank_and_alpha("init_r")
        try:
            total = config.total_step or _NOMINAL
            settings = AdaLoraSettings(
                init_rank=rank,
                target_rank=min(config.target_r or 1, rank),
                alpha=alpha,
                dropout=config.lora_dropout,
                tinit=config.tinit / total,
                tfinal=config.tfinal / total,
                delta_t=config.deltaT or 1,
                importance_beta1=config.beta1,
                importance_beta2=config.beta2,
                orth_weight=config.orth_reg_weight,
                targets=tuple(target.module for target in targets),
            )
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise AdapterError(
                msg("adapter_config.json has no usable settings of AdaLoRA ({error}).", error=reason)
            ) from None
        if config.rank_pattern is None and all(rank == settings.init_rank for rank in ranks):
            return AdapterPlan("adalora", self.key, settings, tuple(targets))
        return PrunedPlan("adalora", self.key, settings, tuple(targets), tuple(ranks))

    def facts(self, plan: AdapterPlan) -> dict[str, object]:
        """The distribution of ranks."""
        ranks = ranks_of(plan)
        spread = ", ".join(f"{rank} ({count}×)" for rank, count in sorted(Counter(ranks).items()))
        return {msg("mean rank"): round(sum(ranks) / len(ranks), 2), "ranks": spread} if ranks else {}

    def sum_refusal(self, plan: AdapterPlan) -> Message | None:
        """See the base class."""
        return None

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """W + s·B·(A∘E)."""
        module = PREFIX + name.removesuffix(".weight")
        if not name.endswith(".weight") or module + A not in tensors:
            return weight
        scale = np.float32(cast(AdaLoraSettings, plan.settings).scale)
        update = tensors[module + B] @ (tensors[module + A] * tensors[module + E])
        return cast(Array, (weight + scale * update).astype(np.float32))


TUNER = AdaLora()

PRESETS = (
    Preset(
        key="adalora",
        title="AdaLoRA",
        summary="LoRA in SVD form that starts with a high rank and prunes it where it matters least; slower than LoRA.",
        paper="arXiv:2303.10512",
    ),
)
