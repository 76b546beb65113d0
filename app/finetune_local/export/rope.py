"""Rotary positions in a config.json: transformers 5 writes `rope_parameters`, all before it and mlx-lm read `rope_theta`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DEFAULT_THETA = 10_000.0


@dataclass(frozen=True)
class Rope:
    """theta, the kind of scaling ("default" is none) and the scaling's own values."""

    theta: float
    kind: str
    values: Mapping[str, Any]


def rope(config: Mapping[str, Any]) -> Rope:
    """What a config says, in either spelling. A table per kind of layer gives that of full attention."""
    new = config.get("rope_parameters") or {}
    if _nested(new):
        new = new.get("full_attention") or next(iter(new.values()))
    both = {**(config.get("rope_scaling") or {}), **new}
    theta = both.pop("rope_theta", None) or config.get("rope_theta") or _DEFAULT_THETA
    old_kind = both.pop("type", None)
    kind = both.pop("rope_type", None) or old_kind or "default"
    return Rope(float(theta), str(kind), {key: value for key, value in both.items() if value is not None})


def with_both_spellings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with `rope_parameters` and with `rope_theta` + `rope_scaling`, saying the same."""
    result = dict(config)
    if not any(key in config for key in ("rope_parameters", "rope_theta", "rope_scaling")):
        return result
    found = rope(config)
    scaling = {"rope_type": found.kind, **found.values}
    result["rope_theta"] = found.theta
    result["rope_scaling"] = None if found.kind == "default" else scaling
    tables = config.get("rope_parameters") or {}
    if _nested(tables):
        if local := (tables.get("sliding_attention") or {}).get("rope_theta"):
            result["rope_local_base_freq"] = local
    else:
        result["rope_parameters"] = {"rope_theta": found.theta, **scaling}
    return result


def _nested(tables: Mapping[str, Any]) -> bool:
    return bool(tables) and all(isinstance(value, Mapping) for value in tables.values())
