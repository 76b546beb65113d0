"""Sliding windows: how far back each layer of a model looks, from its config, for both backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def windows(text: Mapping[str, Any], layers: int) -> list[int | None]:
    """Positions that a query sees in each layer, itself included; None where it sees all. `text` is a config's text part."""
    window = text.get("sliding_window")
    if not isinstance(window, int) or window <= 0 or text.get("use_sliding_window") is False:
        return [None] * layers
    types = text.get("layer_types")
    if not types:
        return [window] * layers
    return [window if kind == "sliding_attention" else None for kind in types]
