"""Recommended models, from assets/models.json. Any other model of a supported architecture works too."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from finetune_local.models.memory.shape import Shape
from finetune_local.system.paths import assets
from finetune_local.system.untrusted.text import read_json


@dataclass(frozen=True)
class Entry:
    """A recommended model. `hub` is its ORG/NAME, "" for the default model, which comes from the package index."""

    name: str
    hub: str
    family: str
    parameters: int
    download_bytes: int
    context_length: int
    license: str
    gated: bool
    good_for: str
    shape: Shape


@cache
def catalog() -> tuple[Entry, ...]:
    """The recommended models, small ones first."""
    values = read_json(assets() / "models.json")
    return tuple(sorted(map(_entry, values), key=lambda e: e.parameters))


def entry(name: str) -> Entry | None:
    """The entry with a short name or a hub name, ignoring case; None for other names."""
    lowered = name.lower()
    return next((e for e in catalog() if lowered and lowered in (e.name.lower(), e.hub.lower())), None)


def _entry(value: dict[str, Any]) -> Entry:
    shape = Shape(family=value["family"], context_length=value["context_length"], **value["shape"])
    return Entry(**{**value, "shape": shape})
