"""Presets: a method's name stands for a family and defaults of other settings. One file each, found by listing.

A user may set anything a preset sets; the preset only moves defaults.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType

from finetune_local.errors import SpecError
from finetune_local.spec.fields import did_you_mean


@dataclass(frozen=True)
class Method:
    """One method: what it is called, where its parameters live, and the settings its name stands for.

    `presets` maps dotted settings ("model.precision", "method.use_dora") to the values the name implies.
    """

    key: str
    title: str
    family: str
    summary: str
    paper: str
    presets: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


@cache
def methods() -> Mapping[str, Method]:
    """Every method by its key (`q_lora.py` would be the key "q-lora")."""
    found: dict[str, Method] = {}
    for module in pkgutil.iter_modules(__path__):
        method: Method = importlib.import_module(f"{__name__}.{module.name}").METHOD
        if method.key != module.name.replace("_", "-"):
            raise RuntimeError(f"spec/methods/{module.name}.py declares key {method.key!r}")
        found[method.key] = method
    return found


def method(key: str) -> Method:
    """The method called `key`. Raises SpecError naming the known ones."""
    known = methods()
    if key not in known:
        raise SpecError(
            f"there is no method '{key}'.{did_you_mean(key, list(known))} Known methods: {', '.join(known)}."
        )
    return known[key]
