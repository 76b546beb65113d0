from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_local.models.folder import ModelFolder
from finetune_local.models.memory.estimate import Estimate, estimate, verdict
from finetune_local.spec.run import parse_spec
from finetune_local.spec.tuners import preset_named, trainable_parameters, tuners
from tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder.open(tiny_model(tmp_path_factory.mktemp("fit") / "tiny"))


def estimated(folder: ModelFolder, key: str = "lora", device: str = "cuda", **tables: Any) -> Estimate:
    spec = parse_spec({"method": {"key": key}, **tables}, "test")
    key = spec.method.key
    plan = tuners()[preset_named(key).tuner].plan(key, spec.method.settings, folder.info())
    return estimate(folder, spec, plan, device)


def test_each_part_is_what_its_formula_says(model: ModelFolder) -> None:
    inner = 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 128)
    outer = model.parameters - inner
    got = estimated(model, model={"precision": "bf16"}, training={"micro_batch_tokens": 1000})
    assert got.weights == 2 * model.parameters
    plan = tuners()["low_rank"].plan("lora", parse_spec({}, "x").method.settings, model.info())
    trained = trainable_parameters(plan)
    assert (got.trainable, got.optimizer) == (8 * trained, 8 * trained)
    assert got.total == got.weights + got.trainable + got.optimizer + got.activations + got.runtime
    assert estimated(model, model={"precision": "fp32"}).weights == 4 * model.parameters
    assert estimated(model, model={"precision": "8-bit"}).weights == inner + 2 * outer
    assert estimated(model, model={"precision": "4-bit"}).weights == int(0.5625 * inner + 2 * outer)


def test_more_at_once_takes_more_and_checkpointing_less(model: ModelFolder) -> None:
    def activations(**training: Any) -> int:
        return estimated(model, training=training).activations

    assert activations(micro_batch_tokens=2048) == pytest.approx(2 * activations(micro_batch_tokens=1024), rel=0.01)
    assert activations(gradient_checkpointing=True) < activations()
    assert estimated(model, training={"optimizer": "adamw-8bit"}).optimizer < estimated(model).optimizer
    assert estimated(model, "full").trainable == 10 * model.parameters  # bf16: a copy is computed with
    assert estimated(model, device="cpu").weights > estimated(model, device="cuda").weights


LINEAR = 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 128)
RANK_16 = 2 * 16 * (4 * 64 + 2 * (64 + 32) + 3 * (64 + 128))  # two blocks: q and o, k and v, the MLP's three


def test_only_what_is_trained_has_gradients_and_states(model: ModelFolder) -> None:
    plain, frozen = estimated(model), estimated(model, "lora-fa")
    a = 2 * 16 * (6 * 64 + 128)  # A of six layers that read 64 numbers and one that reads 128
    assert (plain.trainable, plain.optimizer) == (8 * RANK_16, 8 * RANK_16)
    assert (frozen.trainable, frozen.optimizer) == (8 * RANK_16 - 4 * a, 8 * (RANK_16 - a))
    started = estimated(model, "pissa", training={"optimizer": "adamw"})
    assert (started.trainable, started.optimizer) == (12 * RANK_16, 8 * RANK_16)  # copies of the start are frozen
    vera = estimated(model, "vera", method={"key": "vera", "rank": 8})
    vectors = 2 * (3 * 64 + 2 * 32 + 2 * 128 + 7 * 8)
    assert (vera.trainable, vera.optimizer) == (4 * 8 * (128 + 128) + 8 * vectors, 8 * vectors)


def test_a_tracker_and_copies_of_trained_weights_are_counted(model: ModelFolder) -> None:
    trained = 2 * 12 * (4 * 64 + 2 * (64 + 32) + 3 * (64 + 128)) + 2 * 7 * 12
    assert estimated(model, "adalora").optimizer == (8 + 16) * trained
    assert estimated(model, "full", model={"precision": "bf16"}).trainable == (8 + 2) * model.parameters
    assert estimated(model, "full", model={"precision": "fp32"}).trainable == 8 * model.parameters


def test_nf4_is_smaller_than_affine_groups(model: ModelFolder) -> None:
    outer = model.parameters - LINEAR
    for kind, each in (("nf4", 0.516), ("affine", 0.5625)):
        found = estimated(model, model={"precision": "4-bit", "quantisation": kind})
        assert found.weights == int(each * LINEAR + 2 * outer), kind


# Numbers per token of both blocks, in fp32: the base's are its norms' inputs, q and its mix, k and v, three vectors of the MLP.
BASE = 2 * (2 * 64 + 2 * 64 + 2 * 32 + 3 * 128)
READ = 2 * (64 + 64 + 128)  # by q, k and v; by gate and up; by down. What o reads is kept by attention.
GIVEN = 2 * (2 * 64 + 2 * 32 + 2 * 128 + 64)  # by all linear layers


@pytest.mark.parametrize(
    ("key", "method", "numbers"),
    [
        ("lora", {}, BASE + READ + 14 * 16),
        ("lora", {"rank_pattern": ["q_proj=2"]}, BASE + READ + 12 * 16 + 2 * 2),
        ("lora", {"layers": "last:1"}, (BASE + READ) / 2 + 7 * 16),
        ("lora-plus", {}, BASE + READ + 14 * 16),
        ("lora-fa", {}, BASE + 14 * 16),
        ("dora", {}, BASE + READ + GIVEN + 14 * 16),
        ("pissa", {}, BASE + READ + 14 * 32),
        ("adalora", {}, BASE + READ + 14 * 12),
        ("lora-drop", {}, BASE + READ + 14 * 16),
        ("vera", {"rank": 8}, BASE + GIVEN + 14 * 8),
        ("ia3", {}, BASE + 2 * (32 + 32 + 128)),
        ("adapter", {"adapter_width": 8}, BASE + 4 * (64 + 2 * 8)),
        ("adapter-pfeiffer", {"adapter_width": 8}, BASE + 2 * (64 + 2 * 8)),
        ("bitfit", {}, BASE),
        ("norms", {}, BASE + 5 * 64),
        ("last-layers", {"layers": "last:1"}, (BASE + READ) / 2 + 2 * 64),
        ("prompt", {"prompt_length": 16}, BASE * (1 + 16 / 128)),
        ("prompt-ensemble", {"prompt_length": 16, "prompt_members": 3}, 3 * BASE * (1 + 16 / 128)),
    ],
)
def test_activations_by_hand(model: ModelFolder, key: str, method: dict[str, Any], numbers: float) -> None:
    training = {"micro_batch_tokens": 1024, "gradient_checkpointing": False, "attention": "full"}
    found = estimated(model, key, method={"key": key, **method}, model={"precision": "fp32"}, training=training)
    members = method.get("prompt_members", 1)
    head = 8 * 256 * members * model.vocabulary  # a quarter of the tokens, logits and their gradient
    assert found.activations == pytest.approx(1.25 * 1024 * 4 * numbers + head, abs=2)


def test_the_verdict() -> None:
    need = Estimate(weights=60, trainable=10, optimizer=10, activations=20, runtime=0)
    assert [verdict(need, memory) for memory in (125, 124, 100, 99, 0)] == [
        "fits",
        "tight",
        "tight",
        "too big",
        "too big",
    ]


def test_shards_are_estimated_as_one_model(tmp_path: Path, model: ModelFolder) -> None:
    sharded = ModelFolder.open(tiny_model(tmp_path / "s", shards=3))
    assert estimated(sharded) == estimated(model)
