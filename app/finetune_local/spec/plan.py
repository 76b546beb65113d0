"""What a backend is told to attach: a tuner, its settings, and the modules it lands on.

Targets are resolved from the base's weight names before anything is loaded, so that both backends get the same list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_local.system.fields import Settings


@dataclass(frozen=True)
class WeightInfo:
    """One tensor of a base model as its file header tells it: shape, and dtype in safetensors' words ("BF16")."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class BaseInfo:
    """What a tuner may know of a base before it is loaded: its weights by name, the longest text it reads, its family of
    models as config.json names it, its number of key heads and their width (0 where the config does not say)."""

    weights: Mapping[str, WeightInfo]
    context: int = 1 << 20
    model_type: str = ""
    kv_heads: int = 0
    head_dim: int = 0


@dataclass(frozen=True)
class Target:
    """One module an adapter lands on; `module` is its dotted name, without ".weight".

    What the features are of other modules than linear ones, the tuner says.
    """

    module: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class AdapterPlan:
    """A tuner (the name of a file in spec/tuners and in each backend's tuners/), its settings and its targets.

    `method` is the preset's key, kept for showing; the tuner and settings alone decide what is computed.
    """

    method: str
    tuner: str
    settings: Settings
    targets: tuple[Target, ...]
