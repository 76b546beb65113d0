"""LoRA adapters in PEFT's format: tensor names, adapter_config.json, and reading both back into a plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from finetune_local.spec.low_rank import patterns
from finetune_local.spec.low_rank.full_copies import (
    is_full_copy,
    kinds_in,
    module_of,
    read_full_copies,
    read_token_rows,
)
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.peft_config import PeftConfig
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.targets import check_inside
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import AdapterError, SpecError
from finetune_local.system.fields import one_line
from finetune_local.system.messages import msg

A, B, MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
A0, B0 = ".lora_A0.weight", ".lora_B0.weight"
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
BIAS, INNER_BIAS = ".bias", ".base_layer.bias"
"""Suffix of a bias, and of a bias in a layer that PEFT has wrapped."""
_NOT_READ = (
    *("layer_replication", "target_parameters", "ensure_weight_tying"),
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config"),
    *("lora_bias", "use_bdlora", "use_qalora"),
)
"""Fields of PEFT's LoraConfig that change the computation in ways not implemented here."""
_NAMES_IN_PEFT = {"none": "none", "all": "all", "lora-only": "lora_only"}


def peft_config(plan: AdapterPlan) -> dict[str, object]:
    """PEFT's LoraConfig as JSON, with full module names."""
    settings = cast(LowRankSettings, plan.settings)
    modules = [target.module for target in plan.targets if target.in_features and not is_full_copy(target)]
    saved = [module_of(target) for target in plan.targets if is_full_copy(target)]
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


def read_peft(config: PeftConfig, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
    """The plan of a LoRA written by PEFT, for the tuner of this key. Module names come from the tensors, not from the config.

    Raises AdapterError if the config asks for something this version does not compute, or contradicts the tensors.
    """
    for field in _NOT_READ:
        if field in config.unread:
            raise AdapterError(
                msg(
                    "adapter_config.json uses '{field}', which this version cannot read. Merge the adapter into its base "
                    "with PEFT, or train it again without it.",
                    field=field,
                )
            )
    rank, alpha = config.rank_and_alpha("r")
    start = str(config.init_lora_weights)
    if start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise AdapterError(
            msg(
                "this adapter was initialised with '{start}', which also changed the base's weights, so it does not "
                "fit the unchanged base. Save it as plain LoRA with PEFT: save_pretrained(..., "
                "path_initial_model_for_weight_conversion=...).",
                start=start,
            )
        )
    whole = read_full_copies(config.modules_to_save, shapes)
    rows = read_token_rows(bool(config.trainable_token_indices), shapes)
    targets = _targets(shapes)
    if config.use_dora:
        check_inside((target.module for target in targets if target.in_features), "DoRA")
    modules = tuple(target.module for target in targets if target.in_features)
    if config.bias not in (biases := {v: k for k, v in _NAMES_IN_PEFT.items()}):
        raise AdapterError(
            msg(
                "adapter_config.json: 'bias' is {value}; known: {names}.",
                value=repr(config.bias),
                names=", ".join(biases),
            )
        )
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
        raise AdapterError(
            msg("adapter_config.json has no usable rank or alpha ({error}).", error=one_line(error))
        ) from None
    return known_plan(settings, targets + whole + rows)


def known_plan(settings: LowRankSettings, targets: tuple[Target, ...]) -> AdapterPlan:
    """The plan of a LoRA or DoRA adapter that exists already, such as one that was extracted or converted."""
    return AdapterPlan("dora" if settings.use_dora else "lora", "low_rank", settings, targets)


def bias_name(bias: str, modules: Collection[str]) -> str:
    """A trained bias's name on disk; PEFT moves biases of adapted layers inside its wrapper."""
    module = bias.removesuffix(BIAS)
    return PREFIX + (module + INNER_BIAS if module in modules else bias)


def _targets(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Target, ...]:
    """The targets found in an adapter's tensors. Raises AdapterError if a B is missing."""
    targets = []
    for name in sorted(shapes):
        path = name.removeprefix(PREFIX)
        for first, second in ((A, B), (EMBEDDING_A, EMBEDDING_B)):
            if not name.endswith(first) or len(shapes[name]) != 2:
                continue
            module = path.removesuffix(first)
            other = shapes.get(PREFIX + module + second)
            if other is None:
                raise AdapterError(
                    msg("the adapter has lora_A but no lora_B for {module}: the file is incomplete.", module=module)
                )
            sizes = (shapes[name][1], other[0])
            targets.append(Target(module, *(sizes if first == A else sizes[::-1])))
        if name.endswith(BIAS):
            targets.append(Target(path.removesuffix(INNER_BIAS).removesuffix(BIAS) + BIAS, 0, shapes[name][0]))
    return tuple(targets)
