from __future__ import annotations

from pathlib import Path

import pytest

from finetune_local.models.catalog import Entry, catalog
from finetune_local.models.folder import ModelFolder
from finetune_local.models.memory.estimate import WAYS, estimate, fits, fits_shape, shape_like
from finetune_local.models.memory.shape import Shape
from finetune_local.spec.run import parse_spec, plan_method
from tiny import FAMILIES, HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, MORE_FAMILIES, tiny_model


@pytest.mark.parametrize("entry", catalog(), ids=lambda e: e.name)
def test_each_shape_has_the_number_of_parameters_that_the_catalogue_tells(entry: Entry) -> None:
    assert entry.shape.parameters == entry.parameters
    assert entry.shape.family == entry.family
    assert sum(1 for name in entry.shape.weights() if name.endswith("q_proj.weight")) == entry.shape.blocks


@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_a_shape_tells_what_a_folder_of_its_family_does(family: str, tmp_path: Path) -> None:
    folder = ModelFolder.open(tiny_model(tmp_path / "tiny", family))
    shape = Shape(
        family, HIDDEN, INTERMEDIATE, 2, HEADS, KV_HEADS, HEAD_DIM, 384, 512,
        tied=family not in ("qwen3", "mistral"),
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3_text"),
        four_norms=family in ("gemma2", "gemma3_text"),
    )  # fmt: skip
    assert {n: w.shape for n, w in shape.weights().items()} == {n: w.shape for n, w in folder.weights().items()}
    assert shape.parameters == folder.parameters
    assert shape.info().kv_heads == folder.info().kv_heads
    for key, precision in WAYS:
        spec = parse_spec({"method": {"key": key}, "model": {"precision": precision}}, "test")
        plans = [plan_method(spec.method, model.info()) for model in (shape, folder)]
        assert estimate(shape, spec, plans[0], "cuda") == estimate(folder, spec, plans[1], "cuda")


def test_a_shape_can_be_made_for_a_number_of_parameters() -> None:
    for wanted in (50_000_000, 999_000_000, 7_000_000_000, 70_000_000_000):
        made = shape_like(wanted)
        assert made.parameters == pytest.approx(wanted, rel=0.02)
    assert shape_like(600_000_000, "qwen3").family == "qwen3"
    assert shape_like(600_000_000, "brand-new").parameters == pytest.approx(600_000_000, rel=0.02)


def test_the_verdicts_follow_the_memory_and_checkpointing_is_tried_before_it_is_too_big() -> None:
    shape = next(e.shape for e in catalog() if e.name == "qwen3-4b")
    plenty, some, none = (fits(shape, "cuda", int(gigabytes * 1e9)) for gigabytes in (1000, 9, 1))
    assert [(f.method, f.precision) for f in plenty] == list(WAYS)
    assert {f.verdict for f in plenty} == {"fits"}
    assert not any(f.checkpointing for f in plenty)
    assert {f.verdict for f in none} == {"too big"}
    words = {(f.method, f.precision): f.verdict for f in some}
    assert words["qlora", "4-bit"] == "fits"
    assert words["full", "bf16"] == "too big"
    qlora = next(f for f in some if f.precision == "4-bit")
    assert qlora.checkpointing
    assert qlora.needs.activations < next(f for f in plenty if f.precision == "4-bit").needs.activations
    assert fits_shape(shape, "cuda", int(9e9)) == some


def test_a_model_too_narrow_for_the_usual_rank_has_verdicts_of_the_other_methods() -> None:
    assert {f.method for f in fits(shape_like(98_000, "llama"), "cpu", 16_000_000_000)} == {"full"}


def test_the_reason_has_every_part_in_numbers() -> None:
    found = fits(catalog()[0].shape, "cpu", 16_000_000_000)[0]
    assert found.reason.startswith(
        "lora with a base in fp32 needs 2.8 GB: weights 538 MB, adapter and gradients 39 MB, "
    )
    assert found.reason.endswith("the program 500 MB. The device has 16.0 GB: fits.")
