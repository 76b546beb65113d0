"""Methods as users know them: which are offered first."""

from __future__ import annotations

from finetune_local.spec.run import parse_spec
from finetune_local.spec.tuners import presets, recommended


def test_the_recommended_methods_have_places_of_their_own_and_the_first_is_the_default() -> None:
    places = [preset.recommended for preset in presets().values() if preset.recommended is not None]
    assert sorted(places) == list(range(1, len(recommended()) + 1)), "two methods share a place, or one is missing"
    assert recommended()[0].key == parse_spec({}, "test").method.key
