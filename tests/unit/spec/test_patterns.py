"""Patterns stand for layers as PEFT's do."""

from __future__ import annotations

import pytest

from finetune_local.spec.low_rank import patterns

NAMES = ["model.layers.1.self_attn.q_proj", "model.layers.11.self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head"]
PATTERNS = ["q_proj", "proj", "layers.1.mlp.up_proj", r"layers.1\d.self_attn.\w+", "model", "head|lm_head", "1.self_attn.q_proj"]  # fmt: skip


@pytest.mark.engine
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", PATTERNS)
def test_one_matches_where_peft_finds_it(name: str, key: str) -> None:
    from peft.utils.other import get_pattern_key  # imports torch, which collecting the tests must not

    assert patterns.matches(key, name) == (get_pattern_key([key], name) == key)


def test_the_first_counts_and_numbers_may_follow_any_expression() -> None:
    given = ("q_proj=3", r"layers.1.(?=self).*=5", "self_attn.q_proj=7")
    assert patterns.number_of(given, NAMES[0]) == 3
    assert patterns.number_of(given[1:], NAMES[0]) == 5
    assert patterns.number_of(given, NAMES[3]) is None
    assert patterns.unmatched(given, NAMES[:1]) is None
    assert patterns.unmatched((*given, "层=1"), NAMES) == "层"
    assert patterns.times(("a=1", "b=2.5"), 2) == ("a=2", "b=5")
    assert patterns.from_mapping(patterns.as_mapping(("a=0.1", "b=3"))) == ("a=0.1", "b=3")
