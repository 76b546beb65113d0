"""Adapters on disk: what is wrong with a folder is said in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from finetune_local.adapter_format import CONFIG, read_adapter, write_adapter
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import tuners
from finetune_local.system.errors import AdapterError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of rank 2 on one layer."""
    plan = AdapterPlan("lora", "low_rank", LowRankSettings(rank=2), (Target("model.layers.0.q_proj", 4, 6),))
    shapes = tuners()["low_rank"].shapes(plan)
    write_adapter(tmp_path, plan, {name: np.ones(shape, np.float32) for name, shape in shapes.items()}, "基 base")
    return tmp_path


def change(folder: Path, **fields: Any) -> None:
    values = json.loads((folder / CONFIG).read_text("utf-8")) | fields
    (folder / CONFIG).write_text(json.dumps(values), "utf-8")


def test_what_is_written_is_read(folder: Path) -> None:
    plan, tensors = read_adapter(folder)
    assert plan.targets == (Target("model.layers.0.q_proj", 4, 6),)
    assert {t.shape for t in tensors.values()} == {(2, 4), (6, 2)}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"r": "many"}, "'r' is 'many'"),
        ({"r": 3}, r"says \(3, 4\)"),
        ({"r": None}, "'r'"),
        ({"lora_alpha": 0}, "alpha"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base"),
        ({"init_lora_weights": "lora_ga"}, "changed the base"),
        ({"alora_invocation_tokens": [5, 6]}, "'alora_invocation_tokens'.*train it again"),
        ({"kasa_config": {"beta": 1e-4}}, "'kasa_config'"),
        ({"trainable_token_indices": [3]}, "'trainable_token_indices'"),
        ({"lora_bias": True}, "'lora_bias'"),
        ({"peft_type": "LOHA"}, "LOHA"),
    ],
)
def test_a_config_that_does_not_fit_its_tensors(folder: Path, fields: dict[str, Any], words: str) -> None:
    change(folder, **fields)
    with pytest.raises(AdapterError, match=words):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("kind", "fields", "shapes"),
    [
        (
            "LORA",
            {"use_dora": True},
            {".lora_A.weight": (2, 4), ".lora_B.weight": (9, 2), ".lora_magnitude_vector": (9,)},
        ),
        ("ADALORA", {"init_r": 2}, {".lora_A": (2, 4), ".lora_B": (9, 2), ".lora_E": (2, 1)}),
        ("IA3", {}, {".ia3_l": (9, 1)}),
        ("VERA", {}, {".vera_lambda_b": (9,), ".vera_lambda_d": (2,)}),
    ],
)
def test_at_the_head_only_what_is_computed_there(
    tmp_path: Path, kind: str, fields: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> None:
    """PEFT puts these at a head too; ours are not part of its log-probabilities."""
    tensors = {"base_model.model.lm_head" + name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    if kind == "VERA":
        tensors |= {"base_model.vera_A": np.ones((2, 4), np.float32), "base_model.vera_B": np.ones((9, 2), np.float32)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": kind, "r": 2, "lora_alpha": 4, **fields}), "utf-8")
    with pytest.raises(AdapterError, match=r"at lm_head, which this version .* only inside the blocks\. Merge"):
        read_adapter(tmp_path)


def test_a_folded_adapter_of_a_high_rank_is_read(tmp_path: Path) -> None:
    """Twice the rank of its training form."""
    settings = LowRankSettings(rank=4096, start="pissa")
    plan = AdapterPlan("pissa", "low_rank", settings, (Target("model.layers.0.q_proj", 2, 3),))
    low_rank = tuners()["low_rank"]
    shapes = low_rank.shapes(plan)
    folded, tensors = low_rank.fold(plan, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    write_adapter(tmp_path, folded, tensors, "base")
    read, _ = read_adapter(tmp_path)
    assert isinstance(read.settings, LowRankSettings) and read.settings.rank == 8192


@pytest.mark.parametrize("text", ["[]", "{", "null"])
def test_a_config_that_is_no_config(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text, "utf-8")
    with pytest.raises(AdapterError, match="adapter_config"):
        read_adapter(folder)
