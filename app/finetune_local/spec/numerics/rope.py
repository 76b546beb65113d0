"""Rotary embeddings in config.json: transformers 5 writes `rope_parameters`; older versions and mlx-lm read `rope_theta`.

Also longer contexts by linear position interpolation (Chen et al. 2023, arXiv:2306.15595, section 2.3, as used by LongLoRA):
position m is rotated as m/factor, so `factor` times the context maps onto the positions the model knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg

_DEFAULT_THETA = 10_000.0
_WRITTEN = ("rope_parameters", "rope_theta", "rope_scaling")
_OLD_BESIDE_TABLES = ("gemma3", "gemma3_text", "olmo3")
"""Architectures whose classes read `rope_scaling` in addition to per-layer tables; the others would read it instead of them."""

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")
"""Names of the context length in config.json."""

CONTEXT_UNKNOWN = 2048
"""Context length in tokens assumed for configs that do not say."""


@dataclass(frozen=True)
class Rope:
    """theta, the scaling kind ("default" for none) and the scaling's parameters."""

    theta: float
    kind: str
    values: Mapping[str, Any]


def rope(config: Mapping[str, Any]) -> Rope:
    """What a config declares, in either spelling; of per-layer tables, that of full attention."""
    new = config.get("rope_parameters") or {}
    if tables := by_layer(new):
        new = tables.get("full_attention") or next(iter(tables.values()))
    both = {"partial_rotary_factor": config.get("partial_rotary_factor"), **(config.get("rope_scaling") or {}), **new}
    theta = both.pop("rope_theta", None) or config.get("rope_theta") or _DEFAULT_THETA
    old_kind = both.pop("type", None)
    kind = both.pop("rope_type", None) or old_kind or "default"
    return Rope(float(theta), str(kind), {key: value for key, value in both.items() if value is not None})


def with_both_spellings(config: Mapping[str, Any]) -> dict[str, object]:
    """The config with `rope_parameters` and the equivalent `rope_theta`, `rope_scaling` and `partial_rotary_factor`."""
    result = dict(config)
    tables = by_layer(config.get("rope_parameters") or {})
    if not any(key in config for key in _WRITTEN) or (tables and config.get("model_type") not in _OLD_BESIDE_TABLES):
        return result
    found = rope(config)
    scaling = {"rope_type": found.kind, **found.values}
    result["rope_theta"] = found.theta
    result["rope_scaling"] = None if found.kind == "default" else scaling
    if tables:
        if local := (tables.get("sliding_attention") or {}).get("rope_theta"):
            result["rope_local_base_freq"] = local
        return result
    if "partial_rotary_factor" in found.values:
        result["partial_rotary_factor"] = found.values["partial_rotary_factor"]
    result["rope_parameters"] = {"rope_theta": found.theta, **scaling}
    return result


def context_length(text: Mapping[str, Any]) -> int:
    """Context length in tokens that a config (its text part) declares."""
    for key in CONTEXT_KEYS:
        value = text.get(key)
        if isinstance(value, int) and value > 0:
            return value
    return CONTEXT_UNKNOWN


def stretched(config: Mapping[str, Any], factor: float) -> dict[str, object]:
    """The config with interpolated positions and `factor` times the context; 1 changes nothing.

    Factors multiply for a model that is already interpolated. Raises SpecError if its positions cannot be interpolated.
    """
    result = dict(config)
    if factor == 1:
        return result
    if isinstance(nested := config.get("text_config"), Mapping):
        result["text_config"] = stretched(nested, factor)
        return result
    family = str(config.get("model_type"))
    if not any(config.get(key) for key in _WRITTEN):
        raise SpecError(
            msg(
                "--rope-factor and --context stretch rotary positions, and this model's config.json ('{family}') "
                "declares none (no rope_theta). Remove them, or use another model.",
                family=family,
            )
        )
    found = rope(config)
    if by_layer(config.get("rope_parameters") or {}):
        raise SpecError(
            msg(
                "--rope-factor and --context: models of type '{family}' use different positions in different layers, "
                "which cannot be stretched as one. Remove them, or use another model.",
                family=family,
            )
        )
    if found.kind not in ("default", "linear"):
        raise SpecError(
            msg(
                "--rope-factor and --context: this model's positions are already scaled by '{kind}', which cannot be "
                "combined with linear interpolation. Remove them, or use a model without it.",
                kind=found.kind,
            )
        )
    before = float(found.values.get("factor", 1.0)) if found.kind == "linear" else 1.0
    others = {key: value for key, value in found.values.items() if key != "factor"}
    result["rope_parameters"] = {
        "rope_theta": found.theta,
        "rope_type": "linear",
        "factor": before * factor,
        **others,
    }
    result["rope_scaling"] = None  # else its old values would count beside the new ones
    result["max_position_embeddings"] = round(context_length(config) * factor)
    for key in CONTEXT_KEYS[1:]:
        if key in result:
            result[key] = result["max_position_embeddings"]
    return with_both_spellings(result)


def by_layer(tables: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The per-layer-type tables of `rope_parameters`, if it has them."""
    return {kind: table for kind, table in tables.items() if isinstance(table, Mapping)}
