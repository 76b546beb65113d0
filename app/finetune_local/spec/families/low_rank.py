"""The low-rank update W + s·B·A with all that LoRA's kin add to it: starts, rates, patterns, embeddings, biases, DoRA.

LoRA: Hu et al. 2021, arXiv:2106.09685, section 4.1. rsLoRA's scaling alpha/√r: Kalajdzievski 2023, arXiv:2312.03732.
DoRA: Liu et al. 2024, arXiv:2402.09353, section 4.1 (norm over the input axis, not differentiated through).
LoRA+: Hayou et al. 2024, arXiv:2402.12354, section 4. LoRA-FA: Zhang et al. 2023, arXiv:2308.03303v1, section 3.
PiSSA: Meng et al. 2024, arXiv:2404.02948, section 3. OLoRA: Büyükakyüz 2024, arXiv:2406.01775, section 3.
LoftQ: Li et al. 2023, arXiv:2310.08659, algorithm 1 with T = 1.

Shapes: A (rank, in), B (out, rank), magnitude (out,); at an embedding (vocabulary, width) A (rank, vocabulary) and
B (width, rank). PiSSA and OLoRA start from parts of W. They leave W alone here and have frozen copies A0, B0 of the start
instead: W + s·(B·A − B0·A0), which fold() writes as the plain LoRA [B − B0, B0]·[A; A − A0] of twice the rank.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from finetune_local.errors import AdapterError, SpecError
from finetune_local.spec import patterns
from finetune_local.spec.activations import inputs, normed, outputs
from finetune_local.spec.factors import orthonormal, principal
from finetune_local.spec.families import PREFIX, Array, Family, Source, check_rank, own_config
from finetune_local.spec.fields import Settings, one_line
from finetune_local.spec.initial import kaiming_uniform, normal
from finetune_local.spec.low_rank import SMALLEST_NORM, LowRankSettings, UpdateSettings
from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target
from finetune_local.spec.targets import HEADS, block_of, check_inside, is_embedding, outside_modules, select_linear
from finetune_local.spec.whole import (
    is_table,
    is_token_rows,
    is_whole,
    kind_of,
    kinds_in,
    module_of,
    read_token_rows,
    read_whole,
    shape_of,
    whole_targets,
)

A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
A0, B0 = ".lora_A0.weight", ".lora_B0.weight"
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
BIAS, INNER_BIAS = ".bias", ".base_layer.bias"
"""A bias under its own name, and at a layer that PEFT has wrapped."""
__all__ = ["BIAS", "FAMILY", "INNER_BIAS", "LowRank", "LowRankSettings", "UpdateSettings"]

_NOT_READ = (
    *("layer_replication", "target_parameters", "ensure_weight_tying"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
    *("lora_bias", "use_bdlora", "use_qalora"),
)
"""Fields of PEFT's LoraConfig that make a LoRA compute something else, or elsewhere, than is computed here."""
_NAMES_IN_PEFT = {"none": "none", "all": "all", "lora-only": "lora_only"}


class LowRank(Family):
    """See Family. A target with in_features 0 is a trained bias, its module the whole name; whole copies see spec/whole.py."""

    key = "low_rank"
    settings = LowRankSettings
    peft_types = ("LORA",)

    def refusal(self, settings: Settings, precision: str) -> str | None:
        """See Family."""
        if cast(LowRankSettings, settings).start != "loftq" or precision in ("8-bit", "4-bit"):
            return None
        return (
            f"--init loftq makes up for what quantisation changed, and at --precision {precision} nothing is quantised. "
            "Use --precision 4-bit, or leave --init out."
        )

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        """Select linear layers, embeddings, the head and biases; see Family."""
        chosen = cast(LowRankSettings, settings)
        outside = outside_modules(base.weights)
        named = [name for name in chosen.targets if any(m == name or m.endswith("." + name) for m in outside)]
        inner = tuple(name for name in chosen.targets if name not in named)
        if chosen.layers != "all" and not inner:
            raise SpecError(
                f"--layers {chosen.layers}: {' and '.join(named)} are in no block. Leave it out, or add a --target that is in one."
            )
        targets = select_linear(base.weights, inner, chosen.layers) if inner or not named else ()
        targets += tuple(t for m, t in outside.items() if any(m == n or m.endswith("." + n) for n in named))
        for target in targets:
            rank = chosen.rank_of(target.module)
            check_rank(rank, target, "--rank" if rank == chosen.rank else "--rank-pattern")
        _check(chosen, targets)
        whole = whole_targets(chosen.also_train, base, {target.module for target in targets})
        biases = tuple(target for target in _biases(chosen, targets, base) if target not in whole)
        return AdapterPlan(method, self.key, chosen, targets + biases + whole)

    def rate_factor(self, settings: Settings) -> float:
        """A quarter at LoRA+'s ratio of 16, at which B would else run away (docs/results.md), and nearer to 1 as the ratio is."""
        return float(max(1.0, cast(LowRankSettings, settings).b_rate_ratio) ** -0.5)

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        """rank·(in + out) numbers per target, and out more with DoRA or a trained bias."""
        settings = cast(LowRankSettings, plan.settings)
        modules = {target.module for target in plan.targets}
        result: dict[str, tuple[int, ...]] = {}
        for target in plan.targets:
            name, rank = PREFIX + target.module, settings.rank_of(target.module)
            if is_whole(target) or is_token_rows(target):
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

    def rates(self, plan: AdapterPlan) -> Mapping[str, float]:
        """LoRA+'s ratios as PEFT's optimizer has them, and 0 for what is frozen."""
        settings = cast(LowRankSettings, plan.settings)
        result: dict[str, float] = {}
        copied = (
            t.module for t in plan.targets if is_whole(t) or (settings.also_train and kind_of(t.module) == "norms")
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

    def activations(self, plan: AdapterPlan) -> float:
        """rank per target; what layers are given unless A is frozen, with dropout for each of its own; DoRA's products."""
        settings = cast(LowRankSettings, plan.settings)
        adapted = [t for t in plan.targets if t.in_features and not is_whole(t)]
        linear = [t for t in adapted if not is_embedding(t.module)]
        kept = (2 if settings.from_weights else 1) * sum(settings.rank_of(t.module) for t in adapted)
        if settings.dropout:
            kept += 2 * sum(target.in_features for target in linear)  # what is left of it, and what was drawn
        elif not settings.freeze_a:
            kept += inputs(linear)
        return kept + (outputs(linear) if settings.use_dora else 0) + normed(t for t in plan.targets if is_whole(t))

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        """A random, B zero (at an embedding the other way round), or both from W; magnitudes are row norms of what is
        computed then, so that nothing changes. Raises SpecError where loftq has no unquantised weights."""
        settings = cast(LowRankSettings, plan.settings)
        result: dict[str, Array] = {}
        for target in plan.targets:
            name = PREFIX + target.module
            if is_whole(target):
                result[name] = source.weight(target.module)
            elif target.in_features == 0:
                own = bias_name(target.module, {t.module for t in plan.targets})
                result[own] = source.weight(target.module)
            elif is_embedding(target.module):
                rank = settings.rank_of(target.module)
                result[name + EMBEDDING_A] = np.zeros((rank, target.out_features), np.float32)
                result[name + EMBEDDING_B] = normal(seed, name + EMBEDDING_B, (target.in_features, rank), 1.0)
            else:
                result[name + A], result[name + B] = a, b = _start(settings, target, seed, source)
                if settings.use_dora:
                    weight = source.weight(target.module + ".weight")
                    if settings.start == "loftq":
                        weight = weight + np.float32(settings.scale_of(target.module)) * (b @ a)
                    result[name + MAGNITUDE] = np.linalg.norm(weight, axis=1).astype(np.float32)
                if settings.from_weights:
                    result[name + A0], result[name + B0] = a.copy(), b.copy()
        return result

    def neutral(self, plan: AdapterPlan) -> bool:
        """LoftQ starts nearer to the unquantised model."""
        return cast(LowRankSettings, plan.settings).start != "loftq"

    def apart(self, plan: AdapterPlan) -> str | None:
        """See Family: the head computes log-probabilities of chosen positions, whichever row they are of."""
        heads = [t.module for t in plan.targets if t.module.removesuffix(BIAS).rsplit(".", 1)[-1] in HEADS]
        return (
            f"it adapts the head ({heads[0]}). Train it alone, or without that target."
            if heads
            else super().apart(plan)
        )

    def fold(self, plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
        """PiSSA's and OLoRA's difference as a LoRA of twice the rank and the same scale; others are what they are."""
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
        """PEFT's LoraConfig as JSON, with the modules' full names; of PiSSA's training form our own."""
        settings = cast(LowRankSettings, plan.settings)
        if settings.from_weights:
            return own_config(plan)
        modules = [target.module for target in plan.targets if target.in_features and not is_whole(target)]
        saved = [module_of(target) for target in plan.targets if is_whole(target)]
        # Patterns by whole names: PEFT sorts them when it saves, and where two of them match it takes the first.
        ranks = {module: settings.rank_of(module) for module in modules}
        alphas = {module: settings.alpha_of(module) for module in modules}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "r": settings.rank,
            "lora_alpha": settings.effective_alpha,
            "rank_pattern": {m: rank for m, rank in ranks.items() if rank != settings.rank},
            "alpha_pattern": {m: alpha for m, alpha in alphas.items() if alpha != settings.effective_alpha},
            "lora_dropout": settings.dropout,
            "use_rslora": settings.scaling == "rslora",
            "use_dora": settings.use_dora,
            "bias": _NAMES_IN_PEFT[settings.train_bias],
            "fan_in_fan_out": False,
            "target_modules": modules,
            **({"modules_to_save": saved} if saved else {}),
        }

    def read(self, config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
        """From PEFT's config; the module names are taken from the tensors, which cannot lie about them."""
        for field in _NOT_READ:
            if field in config.unread:
                raise AdapterError(
                    f"adapter_config.json uses '{field}', which this version cannot read. Merge the adapter into its base with "
                    "PEFT, or train it again without."
                )
        rank, alpha = config.rank_and_alpha("r")
        start = str(config.init_lora_weights)
        if start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
            raise AdapterError(
                f"this adapter was begun by '{start}', which changed the base's weights too, so it does not fit the base as it "
                "is. Save it as plain LoRA with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...)."
            )
        whole = read_whole(config.modules_to_save, shapes)
        rows = read_token_rows(bool(config.trainable_token_indices), shapes)
        targets = _targets(shapes)
        if config.use_dora:
            check_inside((target.module for target in targets if target.in_features), "DoRA")
        modules = tuple(target.module for target in targets if target.in_features)
        if config.bias not in (biases := {v: k for k, v in _NAMES_IN_PEFT.items()}):
            raise AdapterError(f"adapter_config.json: 'bias' is {config.bias!r}; known: {', '.join(biases)}.")
        try:
            settings = LowRankSettings(
                rank=rank,
                alpha=alpha,
                rank_pattern=patterns.resolved(config.ranks(), modules, rank),
                alpha_pattern=patterns.resolved(config.alpha_pattern, modules, alpha),
                dropout=config.lora_dropout,
                scaling="rslora" if config.use_rslora else "standard",
                use_dora=config.use_dora,
                train_bias=cast(Any, biases[config.bias]),
                targets=modules,
                also_train=kinds_in(whole),
            )
        except (ValueError, SpecError) as error:
            raise AdapterError(f"adapter_config.json has no usable rank or alpha ({one_line(error)}).") from None
        return AdapterPlan("dora" if settings.use_dora else "lora", self.key, settings, targets + whole + rows)

    def fits(self, target: Target, shape: tuple[int, ...]) -> bool:
        """A table of tokens may have other rows than the base's."""
        if is_table(target):
            return len(shape) == 2 and shape[1] == target.in_features
        return super().fits(target, shape)

    def merge(self, name: str, weight: Array, plan: AdapterPlan, tensors: Mapping[str, Array]) -> Array:
        """W + s·B·A, or m·(W + s·B·A)/‖W + s·B·A‖ with DoRA; a trained bias stands in for the base's."""
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


def bias_name(bias: str, modules: Collection[str]) -> str:
    """A trained bias's name on disk: PEFT moves those of adapted layers inside."""
    module = bias.removesuffix(BIAS)
    return PREFIX + (module + INNER_BIAS if module in modules else bias)


def _check(settings: LowRankSettings, targets: tuple[Target, ...]) -> None:
    """Raise SpecError where settings and targets do not go together."""
    modules = [target.module for target in targets]
    for flag, given in (("--rank-pattern", settings.rank_pattern), ("--alpha-pattern", settings.alpha_pattern)):
        if (name := patterns.unmatched(given, modules)) is not None:
            last = sorted({module.rsplit(".", 1)[-1] for module in modules})
            raise SpecError(f"{flag} {name}: no adapted layer has that name. There is: {', '.join(last)}.")
    embeddings = [module for module in modules if is_embedding(module)]
    outer = [module for module in modules if block_of(module + ".") is None]
    if settings.use_dora and outer:
        raise SpecError(
            f"--target {outer[0]}: DoRA is for the layers inside the blocks only. Use --no-use-dora or another target."
        )
    if settings.freeze_a and embeddings:
        raise SpecError(
            f"--target {embeddings[0]}: at an embedding A is what starts at zero, so with --freeze-a nothing would be "
            "learned. Leave one of them out."
        )
    if settings.embedding_rate_ratio != 1 and not embeddings:
        raise SpecError("--embedding-rate-ratio: no embedding is adapted. Add --target embed_tokens, or leave it out.")


def _biases(settings: LowRankSettings, targets: tuple[Target, ...], base: BaseInfo) -> tuple[Target, ...]:
    """The biases to be trained. Raises SpecError where there are none."""
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
        raise SpecError(f"--train-bias {settings.train_bias}: this model has no such biases. Leave it out.")
    return found


def _start(settings: LowRankSettings, target: Target, seed: int, source: Source) -> tuple[Array, Array]:
    """A and B of a linear layer before training."""
    module, name = target.module, PREFIX + target.module
    rank, scale = settings.rank_of(module), settings.scale_of(module)
    a_shape, b_shape = (rank, target.in_features), (target.out_features, rank)
    if settings.start == "pissa":
        b, a = principal(source.weight(module + ".weight"), rank, name)
        return a / np.float32(math.sqrt(scale)), b / np.float32(math.sqrt(scale))
    if settings.start == "olora":  # not divided by the scale, in PEFT neither
        b, a = orthonormal(source.weight(module + ".weight"), rank)
        return a, b
    if settings.start == "loftq" and block_of(module + ".") is not None:  # what lies outside is not quantised
        if source.stored is None:
            raise SpecError(
                "--init loftq needs the base's unquantised weights, which were not given. Leave --init out."
            )
        error = source.stored(module + ".weight") - source.weight(module + ".weight")
        if error.any():  # else both would be zero, and no gradient would ever come
            b, a = principal(error, rank, name)
            return a / np.float32(math.sqrt(scale)), b / np.float32(math.sqrt(scale))
    if settings.start == "gaussian":
        return normal(seed, name + A, a_shape, 1.0 / rank), np.zeros(b_shape, np.float32)
    return kaiming_uniform(seed, name + A, a_shape), np.zeros(b_shape, np.float32)


def _targets(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Target, ...]:
    """The targets that an adapter's tensors tell of. Raises AdapterError where a B is missing."""
    targets = []
    for name in sorted(shapes):
        path = name.removeprefix(PREFIX)
        for first, second in ((A, B), (EMBEDDING_A, EMBEDDING_B)):
            if not name.endswith(first) or len(shapes[name]) != 2:
                continue
            module = path.removesuffix(first)
            other = shapes.get(PREFIX + module + second)
            if other is None:
                raise AdapterError(f"the adapter has lora_A but no lora_B for {module}: the file is incomplete.")
            sizes = (shapes[name][1], other[0])
            targets.append(Target(module, *(sizes if first == A else sizes[::-1])))
        if name.endswith(BIAS):
            targets.append(Target(path.removesuffix(INNER_BIAS).removesuffix(BIAS) + BIAS, 0, shapes[name][0]))
    return tuple(targets)


FAMILY = LowRank()
