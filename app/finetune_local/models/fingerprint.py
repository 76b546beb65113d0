"""Hashes that identify a base model and do not change when another program re-saves it.

A config is hashed over what affects the computation, with defaults filled in and both spellings of RoPE unified; a tokenizer over
its vocabulary, merges, added tokens and chat template.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from finetune_local.spec.base.config import size_of
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, kind_of

# Fields that change the computation, with the value that a model uses if its config has none.
_FIELDS: Mapping[str, Any] = {
    "model_type": None,
    "hidden_size": None,
    "intermediate_size": None,
    "num_hidden_layers": None,
    "num_attention_heads": None,
    "vocab_size": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_qk_norm": False,
    "partial_rotary_factor": 1.0,
    "query_pre_attn_scalar": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
    "no_rope_layers": None,
    "rope_local_base_freq": None,
    "num_experts": None,
    "num_local_experts": None,
    "num_experts_per_tok": None,
    "moe_intermediate_size": None,
    "norm_topk_prob": False,
}
_FAMILY_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "gemma": {"head_dim": 256, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {"head_dim": 256, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    "gemma3_text": {"head_dim": 256, "tie_word_embeddings": True, "hidden_act": "gelu_pytorch_tanh"},
    "phi3": {"rms_norm_eps": 1e-5},
}
_ROPE_NOISE = ("rope_type", "type", "rope_theta")


def config_sha256(config: Mapping[str, Any]) -> str:
    """Hash of the computation that a config.json describes."""
    nested = config.get("text_config")
    text = {**config, **nested} if isinstance(nested, dict) else dict(config)
    defaults = {**_FIELDS, **_FAMILY_DEFAULTS.get(str(text.get("model_type")), {})}
    chosen = {key: _given(text, key, default) for key, default in defaults.items()}
    heads = text.get("num_attention_heads") or 1
    chosen["num_key_value_heads"] = _given(text, "num_key_value_heads", heads)
    width = size_of(text, "hidden_size") // (size_of(text, "num_attention_heads") or 1)
    chosen["head_dim"] = _given(text, "head_dim", defaults.get("head_dim") or width)
    chosen["hidden_act"] = text.get("hidden_activation") or chosen["hidden_act"]
    chosen["rope"] = _rope(text)
    chosen["window"] = _window(text)
    return _hash(_rounded(chosen))


def tokenizer_sha256(tokenizer: Mapping[str, Any], template: str | None) -> str:
    """Hash of a tokenizer.json's vocabulary, merges and added tokens, and of the chat template.

    Raises ForeignTextError if these do not have the types of a tokenizer.json.
    """
    model = _part(tokenizer, "model", dict, {})
    vocabulary = _part(model, "vocab", (dict, list), {})
    merges = _part(model, "merges", list, [])
    added = _part(tokenizer, "added_tokens", list, [])
    if not all(isinstance(t, dict) and type(t.get("id")) is int and isinstance(t.get("content"), str) for t in added):
        raise ForeignTextError(
            msg("'added_tokens' is not a list of tokens, each with a number (id) and a text (content)")
        )
    return _hash(
        {
            "vocabulary": sorted(vocabulary.items()) if isinstance(vocabulary, dict) else vocabulary,
            "merges": [m.split(" ", 1) if isinstance(m, str) else m for m in merges],
            "added": sorted((t["id"], t["content"]) for t in added),
            "template": template,
        }
    )


def _part(table: Mapping[str, Any], key: str, kind: Any, default: Any) -> Any:
    value = table.get(key)
    if value is not None and not isinstance(value, kind):
        raise ForeignTextError(msg("'{key}' is {kind}, which is not allowed", key=key, kind=kind_of(value)))
    return value or default


def _given(text: Mapping[str, Any], key: str, default: Any) -> Any:
    value = text.get(key)
    return default if value is None else value


def _rope(text: Mapping[str, Any]) -> Any:
    """theta, kind and factors, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    new = text.get("rope_parameters") or {}
    if new and all(isinstance(v, dict) for v in new.values()):  # one table per kind of layer
        return {kind: _rope({**text, "rope_parameters": table}) for kind, table in new.items()}
    old = text.get("rope_scaling") or {}
    both = {**old, **new}
    kind = both.get("rope_type") or both.get("type") or "default"
    result = {
        "theta": both.get("rope_theta") or text.get("rope_theta") or 10000.0,
        "kind": kind,
        **{k: v for k, v in both.items() if k not in _ROPE_NOISE and v is not None},
    }
    if kind == "default":
        return {"theta": result["theta"], "kind": kind}
    return {**result, "positions": text.get("max_position_embeddings")}


def _window(text: Mapping[str, Any]) -> Any:
    """The sliding window and the layers that use it; None if it is off."""
    if text.get("use_sliding_window") is False or not text.get("sliding_window"):
        return None
    return {"size": text["sliding_window"], "layers": text.get("layer_types")}


def _rounded(value: Any) -> Any:
    """Numbers rounded to six digits, so that 1e-05 equals its fp32 neighbour 9.99999975e-06, and 1 equals 1.0."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        return f"{float(value):.6g}" if abs(value) < 1e6 else str(round(value))
    if isinstance(value, Mapping):
        return {str(k): _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value]


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()
