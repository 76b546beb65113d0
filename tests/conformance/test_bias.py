"""BitFit's vectors on both backends: against biases put into the base by hand, merged where there is a place, and on any precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conforming import SFT, batch, make_plan
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.adapters.identity import check_shapes
from finetune_local.backend import Backend
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import tuner_of
from finetune_local.system.errors import AdapterError, ModelError
from tasks import batch_of
from tiny import tiny_model

TEXT = [1, 40, 41, 42, 43, 44]
QKV = ("q_proj", "k_proj", "v_proj")


def plan_of(folder: Path, **settings: Any) -> AdapterPlan:
    return make_plan(parse_spec({"method": {"key": "bitfit", **settings}}, "test"), folder)


def moved(plan: AdapterPlan) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in tuner_of(plan).shapes(plan).items()}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_vectors_are_biases(backend: Backend, tmp_path: Path, family: str) -> None:
    """Hung on transformers' own layers, beside the biases they have."""
    torch = pytest.importorskip("torch", reason="the reference is computed with torch")
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path, family)
    plan = plan_of(folder)
    tensors = moved(plan)
    session = backend.load(folder, "fp32")
    base = session.logits(TEXT)
    session.attach("a", plan, 1, tensors)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layers" in name
    ]
    assert len(layers) == len(plan.targets) == 14
    for name in layers:
        layer = model.get_submodule(name)
        change = torch.from_numpy(tensors[f"base_model.model.{name}.bias_change"])
        layer.bias = torch.nn.Parameter(change if layer.bias is None else layer.bias.detach() + change)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([TEXT])).logits[0].numpy()
    np.testing.assert_allclose(session.logits(TEXT), wanted, atol=2e-4)
    assert np.abs(wanted - base).max() > 0.1


def test_training_existing_biases_is_training_their_change(backend: Backend, tmp_path: Path) -> None:
    """Ten steps as of the biases themselves, trained under their own names."""
    folder = tiny_model(tmp_path, "qwen2")
    own = make_plan(parse_spec({"method": {"key": "full", "train_weights": "biases"}}, "test"), folder)
    plan = plan_of(folder, targets=QKV)
    assert {t.module for t in plan.targets} == {t.module for t in own.targets}
    curves = []
    for each in (plan, own):
        session = backend.load(folder, "fp32")
        session.attach("a", each, 1)
        session.prepare("a", TrainingSettings())
        curves.append([session.step([batch_of(seed=1)], SFT, 2e-2).loss for _ in range(10)])
    assert curves[0][-1] < curves[0][0] - 0.1
    np.testing.assert_allclose(curves[0], curves[1], atol=2e-4)


def test_it_merges_where_there_is_a_bias_and_says_why_where_not(backend: Backend, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "base", "qwen2")
    everywhere = plan_of(folder)
    reason = tuner_of(everywhere).merge_refusal(everywhere)
    assert reason is not None and "have none in this model (down_proj, gate_proj, o_proj, up_proj)" in reason
    plan = plan_of(folder, targets=QKV)
    assert tuner_of(plan).merge_refusal(plan) is None
    session = backend.load(folder, "fp32")
    tensors = moved(plan)
    session.attach("a", plan, 1, tensors)
    merged = {
        name: tuner_of(plan).merge(name, weight, plan, tensors)
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    other = tiny_model(tmp_path / "merged", "qwen2")
    save_file(merged, other / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_allclose(backend.load(other, "fp32").logits(TEXT), session.logits(TEXT), atol=1e-4)


def test_a_file_fits_its_base_and_no_other(backend: Backend, tiny: Path, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "base", "qwen2")
    plan = plan_of(folder)
    write_adapter(tmp_path / "a", plan, moved(plan), "tiny")
    read, tensors = read_adapter(tmp_path / "a")
    assert read == plan
    check_shapes(read, ModelFolder.open(folder))
    with pytest.raises(AdapterError, match=r"q_proj\.bias|k_proj\.bias"):
        check_shapes(read, ModelFolder.open(tiny))
    other = plan_of(folder, targets=("o_proj",))
    from dataclasses import replace

    other = replace(other, targets=tuple(replace(t, out_features=63) for t in other.targets))
    with pytest.raises(ModelError, match=r"o_proj is 64 × 64"):
        backend.load(folder, "fp32").attach("a", other, 1, moved(other))
    assert tensors.keys() == tuner_of(plan).shapes(plan).keys()


@pytest.mark.parametrize("precision", ["bf16", "4-bit"])
def test_it_trains_on_other_precisions(backend: Backend, tiny: Path, precision: Any) -> None:
    session = backend.load(tiny, precision)
    base = session.logits(TEXT)
    session.attach("a", plan_of(tiny), 1)
    np.testing.assert_array_equal(session.logits(TEXT), base)
    session.prepare("a", TrainingSettings())
    losses = [session.step([batch()], SFT, 5e-2).loss for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0], losses
