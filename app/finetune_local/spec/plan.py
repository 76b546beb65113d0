"""What a backend attaches: a tuner, its settings and its target modules.

Targets are selected from the base's weight names before anything is loaded, so both backends get the same list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_local.system.fields import Settings


@dataclass(frozen=True)
class WeightInfo:
    """A base tensor's shape and dtype ("BF16") from its safetensors header."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class BaseInfo:
    """What a tuner may know about a base before it is loaded.

    `context` is in tokens; `model_type` is config.json's; `kv_heads` and `head_dim` are 0 if the config does not say.
    """

    weights: Mapping[str, WeightInfo]
    context: int = 1 << 20
    model_type: str = ""
    kv_heads: int = 0
    head_dim: int = 0


@dataclass(frozen=True)
class Target:
    """A module an adapter attaches to; `module` is its dotted name without ".weight".

    For modules other than linear layers, the tuner defines what the two sizes mean.
    """

    module: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class AdapterPlan:
    """A tuner (its key names a file in spec/tuners and in each backend's tuners/), its settings and its targets.

    `method` is the preset's key, for display; only the tuner and its settings decide what is computed.
    """

    method: str
    tuner: str
    settings: Settings
    targets: tuple[Target, ...]
