"""Longer contexts by interpolated positions: what becomes of a config, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_local.spec.numerics.rope import context_length, rope, stretched
from finetune_local.system.errors import SpecError

NEW = {
    "model_type": "llama",
    "max_position_embeddings": 512,
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
}
OLD = {"model_type": "llama", "max_position_embeddings": 512, "rope_theta": 5e5, "rope_scaling": None}


@pytest.mark.parametrize("config", [NEW, OLD])
def test_both_spellings_say_the_same(config: dict[str, Any]) -> None:
    longer = stretched(config, 4.0)
    assert longer["rope_parameters"] == {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}
    assert longer["rope_theta"] == 5e5 and longer["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert context_length(longer) == 2048
    assert stretched(config, 1.0) == config


def test_what_is_stretched_already_is_stretched_further() -> None:
    for config in (stretched(NEW, 2.0), OLD | {"rope_scaling": {"type": "linear", "factor": 2.0}}):
        found = rope(stretched(config, 1.5))
        assert (found.theta, found.kind, found.values["factor"]) == (5e5, "linear", 3.0)
    half = NEW | {"rope_parameters": NEW["rope_parameters"] | {"partial_rotary_factor": 0.5}}
    assert rope(stretched(half, 2.0)).values == {"factor": 2.0, "partial_rotary_factor": 0.5}


def test_the_text_part_of_a_model_of_several_parts() -> None:
    longer = stretched({"model_type": "parts", "text_config": NEW}, 2.0)
    assert longer["text_config"]["max_position_embeddings"] == 1024 and "rope_parameters" not in longer


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gpt2", "n_positions": 1024}, "declares none"),
        (
            NEW | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 2.0}},
            "already scaled by 'yarn'",
        ),
        (OLD | {"rope_scaling": {"type": "llama3", "factor": 8.0}}, "already scaled by 'llama3'"),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}},
            },
            "different positions",
        ),
    ],
)
def test_what_cannot_be_stretched_is_told(config: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        stretched(config, 2.0)
