from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_local.models.fit import Estimate, estimate, verdict
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.families import families, trainable_parameters
from finetune_local.spec.methods import method
from finetune_local.spec.run import parse_spec
from tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return ModelFolder.open(tiny_model(tmp_path_factory.mktemp("fit") / "tiny"))


def estimated(folder: ModelFolder, key: str = "lora", device: str = "cuda", **tables: Any) -> Estimate:
    spec = parse_spec({"method": {"key": key}, **tables}, "test")
    plan = families()[method(key).family].plan(key, spec.method.settings, folder.info())
    return estimate(folder, spec, plan, device)


def test_each_part_is_what_its_formula_says(model: ModelFolder) -> None:
    inner = 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 64 * 128)
    outer = model.parameters - inner
    got = estimated(model, model={"precision": "bf16"}, training={"micro_batch_tokens": 1000})
    assert got.weights == 2 * model.parameters
    plan = families()["low_rank"].plan("lora", parse_spec({}, "x").method.settings, model.info())
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
    assert estimated(model, "full").trainable == 8 * model.parameters
    assert estimated(model, device="cpu").weights > estimated(model, device="cuda").weights


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
