"""config.json of a merged folder, with the same meaning for transformers and mlx-lm.

mlx-lm's classes expect the spellings of transformers 4, use different names for some fields, and have different defaults. Values
that transformers assumes or spells differently are therefore written out here. tests/conformance/test_receivers.py checks each line
by opening merged folders of these model families in plain mlx-lm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetune_local.adapters.companions import eos
from finetune_local.spec.numerics.rope import rope, with_both_spellings

Config = dict[str, Any]

# Defaults of transformers' classes that mlx-lm's classes do not share.
_PARTIAL = {"phi": 0.5, "stablelm": 0.25, "glm4": 0.5, "glm4_moe": 0.5, "qwen3_next": 0.25, "nemotron": 0.5}
_MISSING: Mapping[str, Mapping[str, Any]] = {
    "apertus": {"mlp_bias": False, "post_norm": False, "qk_norm": True},
}
# transformers 5's name of a field, and mlx-lm's.
_RENAMED: Mapping[str, Mapping[str, str]] = {
    "qwen3_moe": {"num_local_experts": "num_experts"},
    "gpt2": {"n_positions": "n_ctx"},
}


def merged_config(config: Mapping[str, Any], dtype: str, own_head: bool, stops: tuple[int, ...]) -> Config:
    """The config to write beside weights of `dtype`. `own_head`: whether the head is stored apart from the embedding. `stops`: the end
    token ids, end of turn first."""
    result = _completed(config)
    parts = [result]
    if isinstance(nested := config.get("text_config"), Mapping):
        result["text_config"] = _completed(nested)
        parts.append(result["text_config"])
        if "vocab_size" in nested:
            result.setdefault("vocab_size", nested["vocab_size"])
    for part in parts:
        part["dtype"] = dtype
        if "torch_dtype" in part:  # the same field before transformers 4.56
            part["torch_dtype"] = dtype
        if own_head:  # the classes of the two programs have different defaults
            part["tie_word_embeddings"] = False
        if stops and (part is parts[-1] or "eos_token_id" in part):
            part["eos_token_id"] = eos(stops)
    return result


def _completed(config: Mapping[str, Any]) -> Config:
    family = str(config.get("model_type"))
    silent: Config = dict(config)
    if family in _PARTIAL and "partial_rotary_factor" not in rope(config).values:
        silent["partial_rotary_factor"] = _PARTIAL[family]
    result = with_both_spellings(silent)
    for name, value in _MISSING.get(family, {}).items():
        result.setdefault(name, value)
    for theirs, ours in _RENAMED.get(family, {}).items():
        if theirs in result:
            result.setdefault(ours, result[theirs])
    if period := _period(result.get("layer_types")):
        result["sliding_window_pattern"] = period
    if complete := _BY_FAMILY.get(family):
        complete(result)
    return result


def _exaone4(config: Config) -> None:
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    config.setdefault("sliding_window", None)
    period = _period(config.get("layer_types"))
    # mlx-lm's spelling: a letter for each layer of the pattern, Local or Global.
    config["sliding_window_pattern"] = "L" * (period - 1) + "G" if period else None


def _gemma4(config: Config) -> None:
    """The head counts of full attention, which transformers 5 stores per layer."""
    if "per_layer_config" not in config:
        return
    types, layers = config.get("layer_types") or [], config["per_layer_config"] or {}
    full = next((layers[key] for key in layers if _kind(types, key) == "full_attention"), None)
    if isinstance(full, Mapping):
        if "head_dim" in full:
            config.setdefault("global_head_dim", full["head_dim"])
        if "num_key_value_heads" in full:
            config.setdefault("num_global_key_value_heads", full["num_key_value_heads"])
    config.setdefault("global_head_dim", config.get("head_dim"))  # transformers omits fields equal to the default


def _kind(types: list[str], layer: object) -> str | None:
    at = int(str(layer)) if str(layer).isdigit() else -1
    return types[at] if 0 <= at < len(types) else None


def _gpt_neox(config: Config) -> None:
    found = rope(config)
    config["rotary_emb_base"] = found.theta
    config["rotary_pct"] = found.values.get("partial_rotary_factor", config.get("rotary_pct", 0.25))


def _always_scaled(config: Config) -> None:
    """mlx-lm's class reads the scaling's values even if there is none: a scaling by 1."""
    if config.get("rope_scaling") is None and isinstance(whole := config.get("rope_parameters"), Mapping):
        length = config.get("max_position_embeddings")
        config["rope_scaling"] = {**whole, "factor": 1.0, "original_max_position_embeddings": length}


def _lfm2(config: Config) -> None:
    config.setdefault("block_dim", config["hidden_size"])


def _qwen3_next(config: Config) -> None:
    types = config.get("layer_types") or []
    if "full_attention" in types:
        config["full_attention_interval"] = types.index("full_attention") + 1


_BY_FAMILY: Mapping[str, Callable[[Config], None]] = {
    "deepseek_v2": _always_scaled,
    "exaone4": _exaone4,
    "gemma4_text": _gemma4,
    "gpt_neox": _gpt_neox,
    "lfm2": _lfm2,
    "qwen3_next": _qwen3_next,
}


def _period(types: object) -> int | None:
    """The period of full-attention layers, as mlx-lm expects it; None if they are not periodic."""
    if not isinstance(types, list) or "sliding_attention" not in types:
        return None
    full = [index for index, kind in enumerate(types) if kind != "sliding_attention"]
    period = full[0] + 1 if full else 0
    return period if full and full == list(range(period - 1, len(types), period)) else None
