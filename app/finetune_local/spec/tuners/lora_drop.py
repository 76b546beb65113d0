"""LoRA-drop: layers with large updates keep their own LoRA, the others share one per kind of matrix.

Zhou et al. 2024, arXiv:2402.07721, section 3: train LoRA everywhere for a few steps on a sample of the rows, take the mean
squared size of B·A·x as a layer's importance, keep the most important layers up to a share of the total, and start over.
Shapes: A (rank, in), B (out, rank); shared ones are named "shared." and the kind of matrix. Folded it is a plain LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from finetune_local.spec.initial import kaiming_uniform
from finetune_local.spec.low_rank.peft import A, B
from finetune_local.spec.low_rank.settings import LowRankSettings, UpdateSettings
from finetune_local.spec.plan import AdapterPlan, BaseInfo
from finetune_local.spec.targets import block_of, saved_inputs, select_linear
from finetune_local.spec.tuners import PREFIX, Array, Calibration, Preset, Source, Tuner, check_rank
from finetune_local.spec.tuners.low_rank import LowRank
from finetune_local.system.errors import SpecError, TrainingDiverged
from finetune_local.system.fields import Settings, did_you_mean, setting
from finetune_local.system.messages import Message, join_messages, msg

SHARED = "shared."


class LoraDropSettings(UpdateSettings):
    """Settings of LoRA-drop."""

    rank: int = cast(Any, LowRankSettings.model_fields["rank"])
    keep_importance: float = setting(
        0.9,
        help="Layers keep an individual LoRA until they have this share of the importance.",
        group="method",
        gt=0,
        le=1,
    )
    trial_share: float = setting(
        0.1, help="Share of the training rows used to choose layers.", group="method", gt=0, le=1
    )
    trial_steps: int = setting(20, help="Training steps on these rows before layers are chosen.", group="method", ge=1)
    kept: tuple[str, ...] = setting(
        (),
        help="Layer that keeps an individual LoRA (repeatable). Automatic: chosen by a calibration run.",
        group="method",
        flag="--keep-layer",
        metavar="NAME",
    )

    @property
    def plain(self) -> LowRankSettings:
        """The settings of the equivalent plain LoRA."""
        return LowRankSettings(
            rank=self.rank, alpha=self.alpha, dropout=self.dropout, targets=self.targets, layers=self.layers
        )


def stems(plan: AdapterPlan) -> dict[str, str]:
    """Name prefix of each target's tensors: its own module, or the one it shares.

    Before calibration every target has its own. Matrices of one kind but different shapes do not share.
    """
    kept = set(cast(LoraDropSettings, plan.settings).kept)
    shapes: dict[str, set[tuple[int, int]]] = {}
    for target in plan.targets:
        shapes.setdefault(_kind(target.module), set()).add((target.out_features, target.in_features))
    result = {}
    for target in plan.targets:
        kind = _kind(target.module)
        shape = f".{target.out_features}x{target.in_features}" if len(shapes[kind]) > 1 else ""
        result[target.module] = target.module if not kept or target.module in kept else SHARED + kind + shape
    return result


class LoraDrop(Tuner):
    """See Tuner."""

    key = "lora_drop"
    settings = LoraDropSettings

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Select the linear layers. Raises SpecError if a layer to keep is none of them."""
        chosen = cast(LoraDropSettings, settings)
        targets = select_linear(base.weights, chosen.targets, chosen.layers)
        for target in targets:
            check_rank(chosen.rank, target)
        known = [target.module for target in targets]
        if unknown := [name for name in chosen.kept if name not in known]:
            raise SpecError(
                msg(
                    "--keep-layer {unknown}: no adapted layer has that name.{did_you_mean} Use full names such as "
                    "model.layers.0.mlp.up_proj, or remove it to choose layers by a calibration run.",
                    unknown=unknown[0],
                    did_you_mean=did_you_mean(unknown[0], known),
                )
            )
        return AdapterPlan(method, self.key, chosen, targets)

    def calibration(self, plan: AdapterPlan) -> Calibration | None:
        """None once layers are selected."""
        settings = cast(LoraDropSettings, plan.settings)
        return None if settings.kept else Calibration(settings.trial_share, settings.trial_steps)

    def calibrated(self, plan: AdapterPlan, sizes: Mapping[str, float]) -> tuple[Settings, Message]:
        """Keep the most important layers up to `keep_importance` of the total. Raises TrainingDiverged."""
        settings = cast(LoraDropSettings, plan.settings)
        total = sum(sizes.values())
        if not math.isfinite(total) or total <= 0:
            raise TrainingDiverged(
                msg(
                    "the calibration run that chooses layers measured a total importance of {total}. Lower "
                    "--learning-rate, or name the layers with --keep-layer.",
                    total=f"{total:g}",
                )
            )
        kept: set[str] = set()
        sum_kept = 0.0
        for module in sorted(sizes, key=lambda m: -sizes[m]):
            if sum_kept >= settings.keep_importance * total:
                break
            kept.add(module)
            sum_kept += sizes[module]
        names = tuple(target.module for target in plan.targets if target.module in kept)
        shared = len(plan.targets) - len(names)
        kinds = len({_kind(t.module) for t in plan.targets if t.module not in kept})
        text = msg(
            "LoRA-drop: {number} of {count} layers keep their own LoRA, with {share} of the importance: {names}. "
            "The other {number2} share {kinds}, one for each kind of matrix",
            number=len(names),
            count=len(plan.targets),
            share=f"{sum_kept / total:.1%}",
            names=_in_words(names),
            number2=shared,
            kinds=kinds,
        )
        return settings.model_copy(update={"kept": names}), text

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """rank·(in + out) parameters for each kept layer and each kind of shared layer."""
        rank = cast(LoraDropSettings, plan.settings).rank
        result: dict[str, tuple[int, ...]] = {}
        stem = stems(plan)
        for target in plan.targets:
            result[PREFIX + stem[target.module] + A] = (rank, target.in_features)
            result[PREFIX + stem[target.module] + B] = (target.out_features, rank)
        return result

    def saved_activations(self, plan: AdapterPlan) -> float:
        """As for LoRA: shared or not, each layer saves its own x·Aᵀ."""
        return cast(LoraDropSettings, plan.settings).rank * len(plan.targets) + saved_inputs(plan.targets)

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """As for LoRA: A uniform, B zero."""
        return {
            name: kaiming_uniform(seed, name, shape) if name.endswith(A) else np.zeros(shape, np.float32)
            for name, shape in self.shapes(plan).items()
        }

    def fold(self, plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
        """A plain LoRA at every layer."""
        result = {
            PREFIX + module + part: np.array(tensors[PREFIX + stem + part])
            for module, stem in stems(plan).items()
            for part in (A, B)
        }
        plain = cast(LoraDropSettings, plan.settings).plain
        return AdapterPlan(plan.method, LowRank.key, plain, plan.targets), result

    def sum_refusal(self, plan: AdapterPlan) -> Message | None:
        """Additive."""
        return None

    def facts(self, plan: AdapterPlan) -> dict[str, object]:
        """Which layers keep their own LoRA."""
        return {"kept": _in_words(cast(LoraDropSettings, plan.settings).kept)}


def _kind(module: str) -> str:
    """Last part of a module's name: q_proj, up_proj."""
    return module.rsplit(".", 1)[-1]


def _in_words(modules: tuple[str, ...]) -> Message:
    """ "q_proj of blocks 0, 2; up_proj of block 1"."""
    kinds: dict[str, list[str]] = {}
    for module in modules:
        kinds.setdefault(_kind(module), []).append(str(block_of(module + ".")))
    parts = (
        (
            msg("{kind} of blocks {blocks}", kind=kind, blocks=", ".join(at))
            if len(at) > 1
            else msg("{kind} of block {blocks}", kind=kind, blocks=", ".join(at))
        )
        for kind, at in kinds.items()
    )
    return join_messages("; ", parts)


TUNER = LoraDrop()

PRESETS = (
    Preset(
        key="lora-drop",
        title="LoRA-drop",
        summary="LoRA only where a short calibration run shows that it matters; the other layers share one per kind of matrix.",
        paper="arXiv:2402.07721",
    ),
)
