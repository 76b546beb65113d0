"""Presets: a method's name stands for a tuner and default settings. Each is declared at the end of its tuner's file.

A user may override anything a preset sets. Users call presets methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from finetune_local.spec.tuners import Preset, presets_of, tuners
from finetune_local.system.errors import SpecError
from finetune_local.system.fields import did_you_mean
from finetune_local.system.messages import msg


@cache
def presets() -> Mapping[str, Preset]:
    """All presets by key, in alphabetical order."""
    found: dict[str, Preset] = {}
    for tuner in tuners():
        for preset in presets_of(tuner):
            if preset.key in found:
                raise RuntimeError(f"two presets are called {preset.key!r}")
            found[preset.key] = preset
    return dict(sorted(found.items(), key=lambda item: item[0].replace("-", "_")))


@cache
def recommended() -> tuple[Preset, ...]:
    """The presets to offer first; the first of them is the default."""
    places = {preset.recommended: preset for preset in presets().values() if preset.recommended is not None}
    return tuple(places[place] for place in sorted(places))


def preset_named(key: str) -> Preset:
    """The preset called `key`. Raises SpecError listing the known ones."""
    known = presets()
    if key not in known:
        raise SpecError(
            msg(
                "there is no method '{name}'.{did_you_mean} Known methods: {names}.",
                name=key,
                did_you_mean=did_you_mean(key, list(known)),
                names=", ".join(known),
            )
        )
    return known[key]
