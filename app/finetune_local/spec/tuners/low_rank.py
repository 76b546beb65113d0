"""Low-rank updates W + s·B·A and their variants: initialisations, scalings, rank patterns, embeddings, biases, DoRA.

LoRA: Hu et al. 2021, arXiv:2106.09685, section 4.1. rsLoRA's scaling alpha/√r: Kalajdzievski 2023, arXiv:2312.03732.
DoRA: Liu et al. 2024, arXiv:2402.09353, section 4.1; the norm over the input axis is detached from the gradient.
LoRA+: Hayou et al. 2024, arXiv:2402.12354, section 4. LoRA-FA: Zhang et al. 2023, arXiv:2308.03303v1, section 3.
PiSSA: Meng et al. 2024, arXiv:2404.02948, section 3. OLoRA: Büyükakyüz 2024, arXiv:2406.01775, section 3.
LoftQ: Li et al. 2023, arXiv:2310.08659, algorithm 1 with T = 1.

Shapes: A (rank, in), B (out, rank), magnitude (out,); at an embedding (vocabulary, width): A (rank, vocabulary), B (width, rank).
PiSSA and OLoRA initialise A and B from W. W itself is not changed; the training form subtracts frozen copies A0, B0 instead:
W + s·(B·A − B0·A0). fold() writes this as the plain LoRA [B − B0, B0]·[A; A − A0] of twice the rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from finetune_local.spec.initial import normal
from finetune_local.spec.low_rank import patterns
from finetune_local.spec.low_rank.full_copies import (
    full_copy_targets,
    is_full_copy,
    is_table,
    is_token_rows,
    kind_of,
    shape_of,
)
from finetune_local.spec.low_rank.init import initial_factors
from finetune_local.spec.low_rank.peft import (
    A0,
    B0,
    BIAS,
    EMBEDDING_A,
    EMBEDDING_B,
    INNER_BIAS,
    MAGNITUDE,
    A,
    B,
    bias_name,
    peft_config,
    read_peft,
)
from finetune_local.spec.low_rank.settings import SMALLEST_NORM, LowRankSettings
from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.targets import (
    HEADS,
    block_of,
    is_embedding,
    outside_modules,
    saved_by_norms,
    saved_inputs,
    saved_outputs,
    select_linear,
)
from finetune_local.spec.tuners import PREFIX, Array, Preset, Source, Tuner, check_rank, own_config
from finetune_local.system.errors import SpecError
from finetune_local.system.fields import Settings
from finetune_local.system.messages import Message, msg


class LowRank(Tuner):
    """LoRA and its variants. A target with in_features 0 is a trained bias, named by its full name; for full copies see
    full_copies.py.
    """

    key = "low_rank"
    settings = LowRankSettings
    peft_types = ("LORA",)

    def refusal(self, settings: Settings, precision: str) -> Message | None:
        """LoftQ compensates a quantisation error, so it needs a quantised base."""
        if cast(LowRankSettings, settings).start != "loftq" or precision in ("8-bit", "4-bit"):
            return None
        return msg(
            "--init loftq compensates for quantisation, but --precision {precision} quantises nothing. Use "
            "--precision 4-bit, or remove --init.",
            precision=precision,
        )

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Select linear layers, embeddings, the head, biases and full copies."""
        chosen = cast(LowRankSettings, settings)
        outside = outside_modules(base.weights)
        named = [name for name in chosen.targets if any(m == name or m.endswith("." + name) for m in outside)]
        inner = tuple(name for name in chosen.targets if name not in named)
        if chosen.layers != "all" and not inner:
            raise SpecError(
                msg(
                    "--layers {layers}: {named} are not in any block. Remove it, or add a --target that is in one.",
                    layers=chosen.layers,
                    named=" and ".join(named),
                )
            )
        targets = select_linear(base.weights, inner, chosen.layers) if inner or not named else ()
        targets += tuple(t for m, t in outside.items() if any(m == n or m.endswith("." + n) for n in named))
        for target in targets:
            rank = chosen.rank_of(target.module)
            check_rank(rank, target, "--rank" if rank == chosen.rank else "--rank-pattern")
        _check(chosen, targets)
        whole = full_copy_targets(chosen.also_train, base, {target.module for target in targets})
        biases = tuple(target for target in _biases(chosen, targets, base) if target not in whole)
        return AdapterPlan(method, self.key, chosen, targets + biases + whole)

    def lr_factor(self, settings: Settings) -> float:
        """1/4 at LoRA+'s ratio of 16, where B would otherwise diverge (docs/results.md); approaches 1 as the ratio does."""
        return float(max(1.0, cast(LowRankSettings, settings).b_rate_ratio) ** -0.5)

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """rank·(in + out) parameters per target, plus out for DoRA's magnitude or a trained bias."""
        settings = cast(LowRankSettings, plan.settings)
        modules = {target.module for target in plan.targets}
        result: dict[str, tuple[int, ...]] = {}
        for target in plan.targets:
            name, rank = PREFIX + target.module, settings.rank_of(target.module)
            if is_full_copy(target) or is_token_rows(target):
                result[name] = shape_of(target)
            elif target.in_features == 0:
                result[bias_name(target.module, modules)] = (target.out_features,)
            elif is_embedding(target.module):
                result[name + EMBEDDING_A] = (rank, target.out_features)
                result[name + EMBEDDING_B] = (target.in_features, rank)
            else:
                result[name + A] = (rank, target.in_features)
                result[name + B] = (target.out_features, rank)
                if settings.use_dora:
                    result[name + MAGNITUDE] = (target.out_features,)
                if settings.from_weights:
                    result[name + A0], result[name + B0] = result[name + A], result[name + B]
        return result

    def lr_multipliers(self, plan: AdapterPlan) -> Mapping[str, float]:
        """LoRA+'s ratios, as in PEFT's optimizer, and 0 for frozen tensors."""
        settings = cast(LowRankSettings, plan.settings)
        result: dict[str, float] = {}
        copied = (
            t.module for t in plan.targets if is_full_copy(t) or (settings.also_train and kind_of(t.module) == "norms")
        )
        whole = {PREFIX + name for name in copied}
        for name in self.shapes(plan):
            if name in whole:
                result[name] = settings.also_train_rate
            elif name.endswith((A0, B0)) or (settings.freeze_a and name.endswith(A)):
                result[name] = 0.0
            elif name.endswith((EMBEDDING_A, EMBEDDING_B)):
                result[name] = settings.embedding_rate_ratio
            elif not name.endswith(A):
                result[name] = settings.b_rate_ratio
        return {name: rate for name, rate in result.items() if rate != 1.0}

    def saved_activations(self, plan: AdapterPlan) -> float:
        """x·Aᵀ per target; the layers' inputs unless A is frozen (one copy per target with dropout); DoRA's outputs."""
        settings = cast(LowRankSettings, plan.settings)
        adapted = [t for t in plan.targets if t.in_features and not is_full_copy(t)]
        linear = [t for t in adapted if not is_embedding(t.module)]
        kept = (2 if settings.from_weights else 1) * sum(settings.rank_of(t.module) for t in adapted)
        if settings.dropout:
            kept += 2 * sum(target.in_features for target in linear)  # the input after dropout, and the mask
        elif not settings.freeze_a:
            kept += saved_inputs(linear)
        return (
            kept
            + (saved_outputs(linear) if settings.use_dora else 0)
            + saved_by_norms(t for t in plan.targets if is_full_copy(t))
        )

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """A random and B zero (reversed at an embedding), or both from W; magnitudes are W's row norms, so the output is unchanged.

        Raises SpecError if LoftQ has no unquantised weights.
        """
        settings = cast(LowRankSettings, plan.settings)
        result: dict[str, Array] = {}
        for target in plan.targets:
            name = PREFIX + target.module
            if is_full_copy(target):
                result[name] = source.weight(target.module)
            elif target.in_features == 0:
                own = bias_name(target.module, {t.module for t in plan.targets})
                result[own] = source.weight(target.module)
            elif is_embedding(target.module):
                rank = settings.rank_of(target.module)
                result[name + EMBEDDING_A] = np.zeros((rank, target.out_features), np.float32)
                result[name + EMBEDDING_B] = normal(seed, name + EMBEDDING_B, (target.in_features, rank), 1.0)
            else:
                result[name + A], result[name + B] = a, b = initial_factors(settings, target, seed, source)
                if settings.use_dora:
                    weight = source.weight(target.module + ".weight")
                    if settings.start == "loftq":
                        weight = weight + np.float32(settings.scale_of(target.module)) * (b @ a)
                    result[name + MAGNITUDE] = np.linalg.norm(weight, axis=1).astype(np.float32)
                if settings.from_weights:
                    result[name + A0], result[name + B0] = a.copy(), b.copy()
        return result

    def neutral(self, plan: AdapterPlan) -> bool:
        """False for LoftQ only: it starts closer to the unquantised model."""
        return cast(LowRankSettings, plan.settings).start != "loftq"

    def sharing_refusal(self, plan: AdapterPlan) -> Message | None:
        """The head computes log-probabilities for selected positions of all rows at once, so it cannot be split by row."""
        heads = [t.module for t in plan.targets if t.module.removesuffix(BIAS).rsplit(".", 1)[-1] in HEADS]
        return (
            msg("it adapts the head ({module}). Train it alone, or without that target.", module=heads[0])
            if heads
            else super().sharing_refusal(plan)
        )

    def fold(self, plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
        """PiSSA and OLoRA become a plain LoRA of twice the rank at the same scale; everything else is unchanged."""
        settings = cast(LowRankSettings, plan.settings)
        if not settings.from_weights:
            return plan, dict(tensors)
        result: dict[str, Array] = {}
        for name, value in tensors.items():
            module = name[: name.rfind(".lora_")]
            if name.endswith(A):
                result[name] = np.concatenate([value, value - tensors[module + A0]])
            elif name.endswith(B):
                start = tensors[module + B0]
                result[name] = np.concatenate([value - start, start], 1)
            elif name.endswith((EMBEDDING_A, EMBEDDING_B)):  # the rank is for all layers: the rest is zero
                result[name] = np.concatenate([value, np.zeros_like(value)], 0 if name.endswith(EMBEDDING_A) else 1)
            elif not name.endswith((A0, B0)):
                result[name] = value
        return replace(plan, settings=settings.doubled()), result

    def config(self, plan: AdapterPlan) -> dict[str, object]:
        """PEFT's LoraConfig; own_config() for the training form of PiSSA and OLoRA."""
        return own_config(plan) if cast(LowRankSettings, plan.settings).from_weights else peft_config(plan)

    def read(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """See low_rank_peft.read_peft."""
        return read_peft(config, shapes)

    def fits(self, target: Target, shape: tuple[int, ...]) -> bool:
        """Copies of token tables may have more or fewer rows than the base's."""
        if is_table(target):
            return len(shape) == 2 and shape[1] == target.in_features
        return super().fits(target, shape)

    def sum_refusal(self, plan: AdapterPlan) -> Message | None:
        """DoRA rescales the base's weights and a full copy replaces one, so neither is additive."""
        settings = cast(LowRankSettings, plan.settings)
        return super().sum_refusal(plan) if settings.use_dora or any(map(is_full_copy, plan.targets)) else None

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """W + s·B·A, with DoRA m·(W + s·B·A)/‖W + s·B·A‖; a trained bias or a full copy replaces the base's tensor."""
        if PREFIX + name in tensors:  # a whole copy, or a bias
            return tensors[PREFIX + name].astype(np.float32)
        if name.endswith(BIAS):
            found = tensors.get(PREFIX + name.removesuffix(BIAS) + INNER_BIAS, tensors.get(PREFIX + name))
            return weight if found is None else found.astype(np.float32)
        path = name.removesuffix(".weight")
        module, settings = PREFIX + path, cast(LowRankSettings, plan.settings)
        if module + EMBEDDING_A in tensors:
            update = (tensors[module + EMBEDDING_B] @ tensors[module + EMBEDDING_A]).T
        elif name.endswith(".weight") and module + A in tensors:
            update = tensors[module + B] @ tensors[module + A]
        else:
            return weight
        merged = weight + np.float32(settings.scale_of(path)) * update
        if settings.use_dora:
            norm = np.maximum(np.linalg.norm(merged, axis=1), np.float32(SMALLEST_NORM))
            merged = merged * (tensors[module + MAGNITUDE] / norm)[:, None]
        return cast(Array, merged.astype(np.float32))


def _check(settings: LowRankSettings, targets: tuple[Target, ...]) -> None:
    """Raise SpecError if settings and targets contradict each other."""
    modules = [target.module for target in targets]
    for flag, given in (("--rank-pattern", settings.rank_pattern), ("--alpha-pattern", settings.alpha_pattern)):
        if (name := patterns.unmatched(given, modules)) is not None:
            last = sorted({module.rsplit(".", 1)[-1] for module in modules})
            raise SpecError(
                msg(
                    "{flag} {name}: no adapted layer has that name. Adapted layers: {names}.",
                    flag=flag,
                    name=name,
                    names=", ".join(last),
                )
            )
    embeddings = [module for module in modules if is_embedding(module)]
    outer = [module for module in modules if block_of(module + ".") is None]
    if settings.use_dora and outer:
        raise SpecError(
            msg(
                "--target {name}: DoRA is for layers inside the blocks. Use --no-use-dora or another target.",
                name=outer[0],
            )
        )
    if settings.freeze_a and embeddings:
        raise SpecError(
            msg(
                "--target {embeddings}: in an embedding it is A that starts at zero, so with --freeze-a nothing "
                "would be learned. Use only one of them.",
                embeddings=embeddings[0],
            )
        )
    if settings.embedding_rate_ratio != 1 and not embeddings:
        raise SpecError(
            msg("--embedding-rate-ratio: no embedding is adapted. Add --target embed_tokens, or remove it.")
        )


def _biases(settings: LowRankSettings, targets: tuple[Target, ...], base: BaseInfo) -> tuple[Target, ...]:
    """The biases to train. Raises SpecError if there are none."""
    if settings.train_bias == "none":
        return ()
    modules = {target.module for target in targets}
    found = tuple(
        Target(name, 0, info.shape[0])
        for name, info in sorted(base.weights.items())
        if name.endswith(BIAS)
        and len(info.shape) == 1
        and (settings.train_bias == "all" or name.removesuffix(BIAS) in modules)
    )
    if not found:
        raise SpecError(
            msg("--train-bias {value}: this model has no such biases. Remove it.", value=settings.train_bias)
        )
    return found


TUNER = LowRank()

PRESETS = (
    Preset(
        key="dora",
        title="DoRA",
        summary="LoRA that trains magnitude and direction separately; closer to full fine-tuning, slower.",
        paper="arXiv:2402.09353",
        defaults={"method.use_dora": True},
        recommended=3,
        in_mlx_lm=True,
    ),
    Preset(
        key="longlora",
        title="LongLoRA",
        summary="LoRA on attention, full training of embeddings and norms; long rows are trained in shifted groups.",
        paper="arXiv:2309.12307",
        defaults={
            "method.targets": ("attention",),
            "method.also_train": ("embeddings", "norms"),
            "training.attention": "shifted",
        },
    ),
    Preset(
        key="lora",
        title="LoRA",
        summary="Trains a small low-rank update beside each linear layer; the base is not changed.",
        paper="arXiv:2106.09685",
        recommended=1,
        estimated=("fp32", "bf16", "8-bit"),
        in_mlx_lm=True,
    ),
    Preset(
        key="lora-fa",
        title="LoRA-FA",
        summary="LoRA with a frozen A: half the trained parameters, and less memory for activations.",
        paper="arXiv:2308.03303",
        defaults={"method.freeze_a": True},
    ),
    Preset(
        key="lora-plus",
        title="LoRA+",
        summary="LoRA whose B learns 16 times as fast as its A: reaches the same loss in fewer steps.",
        paper="arXiv:2402.12354",
        defaults={"method.b_rate_ratio": 16.0},
    ),
    Preset(
        key="pissa",
        title="PiSSA",
        summary="LoRA initialised from the weights' largest singular values instead of from zero.",
        paper="arXiv:2404.02948",
        defaults={"method.start": "pissa"},
    ),
    Preset(
        key="qdora",
        title="QDoRA",
        summary="DoRA on a 4-bit base.",
        paper="arXiv:2402.09353",
        defaults={"model.precision": "4-bit", "training.optimizer": "paged-adamw", "method.use_dora": True},
    ),
    Preset(
        key="qlora",
        title="QLoRA",
        summary="LoRA on a 4-bit base, with paged optimizer states: the least memory.",
        paper="arXiv:2305.14314",
        defaults={"model.precision": "4-bit", "training.optimizer": "paged-adamw"},
        recommended=2,
        estimated=("4-bit",),
    ),
)
