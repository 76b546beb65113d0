"""Targets are chosen from the weights' names, before anything is loaded."""

from __future__ import annotations

import pytest

from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import BaseInfo, WeightInfo
from finetune_local.spec.targets import parse_layers, select_linear
from finetune_local.spec.tuners import trainable_parameters, tuners
from finetune_local.system.errors import SpecError

WEIGHTS = {
    "model.embed_tokens.weight": WeightInfo((100, 8), "F32"),
    "model.norm.weight": WeightInfo((8,), "F32"),
    **{
        f"model.layers.{i}.self_attn.{n}.weight": WeightInfo((8, 8), "F32")
        for i in range(12)
        for n in ("q_proj", "v_proj")
    },
    **{f"model.layers.{i}.mlp.down_proj.weight": WeightInfo((8, 16), "F32") for i in range(12)},
    **{f"model.layers.{i}.input_layernorm.weight": WeightInfo((8,), "F32") for i in range(12)},
}


def modules(names: tuple[str, ...], layers: str = "all") -> list[str]:
    return [t.module for t in select_linear(WEIGHTS, names, layers)]


def test_all_linear_layers_and_nothing_else() -> None:
    found = modules(("all-linear",))
    assert len(found) == 36
    assert not any("embed" in m or "norm" in m for m in found)
    assert found.index("model.layers.2.mlp.down_proj") < found.index("model.layers.10.mlp.down_proj")


def test_groups_names_and_layers() -> None:
    assert len(modules(("attention",))) == 24
    assert len(modules(("mlp",))) == 12
    assert modules(("q_proj",), "last:2") == ["model.layers.10.self_attn.q_proj", "model.layers.11.self_attn.q_proj"]
    assert modules(("model.layers.3.mlp.down_proj",)) == ["model.layers.3.mlp.down_proj"]
    assert len(modules(("q_proj", "v_proj"), "0-2,5")) == 8


@pytest.mark.parametrize("layers", ["last:13", "last:0", "3-1", "0-12", "x", ""])
def test_layers_that_do_not_exist(layers: str) -> None:
    with pytest.raises(SpecError, match="--layers"):
        modules(("q_proj",), layers)


def test_parse_layers() -> None:
    assert parse_layers("first:2", 4) == {0, 1}
    assert parse_layers("last:1", 4) == {3}
    assert parse_layers("0-1,3", 4) == {0, 1, 3}


def test_nothing_matched_says_what_exists() -> None:
    with pytest.raises(SpecError, match=r"--target q_prj.*Did you mean 'q_proj'.*down_proj, q_proj, v_proj"):
        modules(("q_prj",))


@pytest.mark.parametrize(("use_dora", "expected"), [(False, 24 * 2 * 16 + 12 * 2 * 24), (True, 24 * 40 + 12 * 56)])
def test_the_parameter_count_is_the_papers_formula(use_dora: bool, expected: int) -> None:
    plan = tuners()["low_rank"].plan("lora", LowRankSettings(rank=2, use_dora=use_dora), BaseInfo(WEIGHTS))
    assert trainable_parameters(plan) == expected


def test_a_rank_above_the_matrix_is_refused() -> None:
    with pytest.raises(SpecError, match=r"rank is 9.*--rank to 8"):
        tuners()["low_rank"].plan("lora", LowRankSettings(rank=9), BaseInfo(WEIGHTS))


def test_full_takes_every_weight() -> None:
    family = tuners()["full"]
    plan = family.plan("full", family.settings(), BaseInfo(WEIGHTS))
    assert trainable_parameters(plan) == 800 + 8 + 24 * 64 + 12 * 128 + 12 * 8


def test_names_and_layers_that_do_not_meet_are_refused() -> None:
    only_first = {"model.layers.0.mlp.gate_proj.weight": WeightInfo((8, 8), "F32"), **WEIGHTS}
    assert select_linear(only_first, ("gate_proj",), "0")
    with pytest.raises(SpecError, match="gate_proj --layers 5"):
        select_linear(only_first, ("gate_proj",), "5")
