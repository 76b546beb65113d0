"""A model's config.json in the form mlx-lm needs, and what mlx-lm's classes do not support. The folder is never changed.

For most families mlx-lm 0.32 silently ignores `rope_parameters`, where transformers 5 stores theta and scaling, and its classes'
defaults are not always those of transformers. So the config is first completed by transformers' class, and theta and scaling are
then copied to the keys that mlx-lm reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from finetune_local.spec.base.config import read_base_config
from finetune_local.spec.numerics.rope import by_layer, stretched
from finetune_local.system.errors import ModelError, Unsupported
from finetune_local.system.messages import msg

Config = dict[str, Any]

# Families whose logits a test compares with transformers'. mlx-lm has more, but some of its classes are silently wrong for
# current configs (such as glm and olmo3), so a family is supported only if it is listed here, which the test picks up.
CHECKED = frozenset(
    [
        "cohere",
        "cohere2",
        "ernie4_5",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm4",
        "granite",
        "helium",
        "hunyuan_v1_dense",
        "llama",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo2",
        "olmoe",
        "phi",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
    ]
)
# Keys that transformers 5 and mlx-lm's classes name differently.
_RENAMED = {"num_local_experts": "num_experts"}


def read_config(folder: Path, rope_factor: float = 1.0) -> Config:
    """config.json, completed, stretched and normalised. Raises ModelError, Unsupported, SpecError."""
    raw = read_base_config(folder)
    family = raw.get("model_type")
    if not isinstance(family, str):
        raise ModelError(
            msg("{folder}: no 'model_type', so the kind of model is unknown.", folder=folder / "config.json")
        )
    if raw.get("model_file"):  # (the code named by `auto_map` is never needed: these families are built in)
        raise ModelError(msg("{folder}: this model requires its own code, which is not run here.", folder=folder))
    if raw.get("quantization") or raw.get("quantization_config"):
        raise ModelError(
            msg(
                "{folder}: its weights are already quantised. Use the original model and --precision 4-bit or 8-bit.",
                folder=folder,
            )
        )
    if family not in CHECKED:
        raise Unsupported(
            msg(
                "{folder}: models of the family '{family}' have not been verified under MLX. Use --backend torch, or "
                "a model of: {names}.",
                folder=folder,
                family=family,
                names=", ".join(sorted(CHECKED)),
            )
        )
    return normalised(stretched({**_completed(folder, raw), "model_type": family}, rope_factor))


def normalised(config: Config) -> Config:
    """The config with theta, scaling and the pattern of sliding layers under mlx-lm's keys; also in nested text configs."""
    result = dict(config)
    for part in ("text_config", "llm_config", "language_config"):
        if isinstance(result.get(part), dict):
            result[part] = normalised(result[part])
    rope = result.get("rope_parameters")
    if isinstance(rope, dict) and rope:
        local = None
        if tables := by_layer(rope):  # one set per type of layer, as in Gemma 3
            local = tables.get("sliding_attention")
            rope = tables.get("full_attention") or local or next(iter(tables.values()))
        if "rope_theta" in rope:
            result["rope_theta"] = float(rope["rope_theta"])
        if local and "rope_theta" in local:
            result["rope_local_base_freq"] = float(local["rope_theta"])
        if "partial_rotary_factor" in rope:
            result["partial_rotary_factor"] = rope["partial_rotary_factor"]
        kind = rope.get("rope_type", rope.get("type", "default"))
        scaling = {k: v for k, v in rope.items() if k not in ("rope_theta", "partial_rotary_factor")}
        result["rope_scaling"] = None if kind == "default" else {**scaling, "type": kind, "rope_type": kind}
    for theirs, ours in _RENAMED.items():
        if theirs in result:
            result.setdefault(ours, result[theirs])
    pattern = result.get("layer_types")
    if isinstance(pattern, list) and "sliding_attention" in pattern:
        result["sliding_window_pattern"] = _period(pattern)
    return result


def longest(config: Config, arguments: object) -> int | None:
    """The longest text, in tokens, that this model computes correctly; None for any.

    Some of mlx-lm's classes have no sliding window, which makes no difference up to the window's length.
    """
    text = config.get("text_config") or config
    window = text.get("sliding_window")
    known = getattr(arguments, "sliding_window", None)
    if not isinstance(window, int) or text.get("use_sliding_window") is False:
        return None
    types = text.get("layer_types") or ["sliding_attention"]
    if "sliding_attention" not in types:
        return None
    handled = getattr(arguments, "layer_types", types) == types
    return None if known == window and handled else window


def _completed(folder: Path, raw: Config) -> Config:
    """The config completed with the defaults of transformers' class; unchanged if transformers has no such family."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = str(raw["model_type"])
    if family not in CONFIG_MAPPING:
        return raw
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - it has its own classes of errors, one for each way a field can be wrong
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(msg("{folder}: {said}", folder=folder / "config.json", said=reason)) from None
    _check_activation(config, family)
    return {**raw, **cast(Config, config.to_dict())}


def _check_activation(config: Any, family: str) -> None:
    """Refuse a config with another activation than the one built into mlx-lm's class."""
    alike = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh", "swish": "silu"}
    for field in ("hidden_act", "hidden_activation", "activation_function"):
        usual, needed = getattr(type(config), field, None), getattr(config, field, None)
        if isinstance(usual, str) and isinstance(needed, str) and alike.get(usual, usual) != alike.get(needed, needed):
            raise Unsupported(
                msg(
                    "MLX computes {family} models with {usual}; this one needs {needed}. Use torch.",
                    family=family,
                    usual=usual,
                    needed=needed,
                )
            )


def _period(types: list[str]) -> int:
    """The n of mlx-lm's "every n-th layer has full attention"; any other pattern is refused rather than computed wrongly."""
    full = [index for index, kind in enumerate(types) if kind != "sliding_attention"]
    period = full[0] + 1 if full else 0
    if not full or full != list(range(period - 1, len(types), period)):
        raise Unsupported(msg("MLX cannot compute this model's pattern of sliding-window layers. Use --backend torch."))
    return period
