"""LongLoRA beyond its attention: whole copies beside LoRA as PEFT has them, and a longer context from training to the export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conforming import ROWS, SFT, batch, make_plan
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.backend import Backend, Session, backends
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import trainable_parameters, tuner_of
from finetune_local.system.errors import AdapterError, SpecError
from tasks import batch_of
from tiny import tiny_model

TEXT = list(ROWS[0])
EMBEDDING = "base_model.model.model.embed_tokens.weight"
NORMS = 2 * 2 * 64 + 64
BOTH = pytest.mark.skipif(any(b.missing() for b in backends().values()), reason="parity and PEFT need both backends")
PLAIN_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def plan_of(folder: Path, *kinds: str, **settings: Any) -> AdapterPlan:
    method = {"key": "lora", "rank": 4, "targets": ["attention"], "also_train": list(kinds), **settings}
    return make_plan(parse_spec({"method": method}, "test"), folder)


def trained(session: Session, plan: AdapterPlan, steps: int = 6) -> list[float]:
    session.attach("a", plan, 1)
    session.prepare("a", TrainingSettings())
    return [session.step([batch()], SFT, 1e-2).loss for _ in range(steps)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
@pytest.mark.parametrize("tied", [True, False])
def test_copies_are_trained_saved_and_merged(tmp_path: Path, backend: Backend, family: str, tied: bool) -> None:
    if backend.name == "mlx" and family == "gemma":
        pytest.skip("MLX's class for Gemma has no head of its own, which the merged model has")
    folder = tiny_model(tmp_path / "base", family, tied=tied)
    plan = plan_of(folder, "embeddings", "norms")
    session = backend.load(folder, "fp32")
    before = session.logits(TEXT)
    session.attach("new", plan, 1)
    np.testing.assert_allclose(session.logits(TEXT), before, atol=1e-6)
    assert EMBEDDING in session.tensors("new")
    assert "base_model.model.model.layers.0.input_layernorm.weight" in session.tensors("new")
    session.detach("new")
    losses = trained(session, plan)
    assert losses[-1] < losses[0]
    tensors, own = session.tensors("a"), load_file(folder / "model.safetensors")
    copies = [name for name in tensors if ".lora_" not in name]
    assert all(np.abs(tensors[n] - own[n.removeprefix("base_model.model.")]).max() > 1e-4 for n in copies)
    expected = session.logits(TEXT)
    write_adapter(tmp_path / "adapter", plan, tensors, "tiny")
    read, values = read_adapter(tmp_path / "adapter")
    other = backend.load(folder, "fp32")
    other.attach("b", read, 0, values)
    np.testing.assert_allclose(other.logits(TEXT), expected, atol=2e-5)
    session.activate(None)
    np.testing.assert_array_equal(session.logits(TEXT), before)

    from finetune_local.export.targets.merged import write_merged

    write_merged(ModelFolder.open(folder), tmp_path / "adapter", tmp_path / "merged")
    np.testing.assert_allclose(backend.load(tmp_path / "merged", "fp32").logits(TEXT), expected, atol=1e-4)


@BOTH
@PLAIN_PEFT
@pytest.mark.parametrize("tied", [True, False])
def test_peft_opens_it_and_answers_the_same(tmp_path: Path, tied: bool) -> None:
    """A head tied to a copied embedding stays the base's there too."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path / "base", "qwen2", tied=tied)
    session, plan = backends()["torch"].load(folder, "fp32"), plan_of(folder, "embeddings", "norms")
    trained(session, plan)
    write_adapter(tmp_path / "adapter", plan, session.tensors("a"), str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # PEFT warns of tied weights
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    with torch.no_grad():
        found = model(torch.tensor([TEXT])).logits[0].numpy()
    np.testing.assert_allclose(found, session.logits(TEXT), atol=1e-5)
    model.save_pretrained(tmp_path / "again", save_embedding_layers=False)
    again, values = read_adapter(tmp_path / "again")
    fresh = backends()["mlx"].load(folder, "fp32")
    fresh.attach("b", again, 0, values)
    np.testing.assert_allclose(fresh.logits(TEXT), found, atol=1e-4)


@BOTH
def test_both_backends_have_one_curve(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "qwen2")
    for kinds in (["embeddings", "norms"], ["norms"]):
        curves = [trained(b.load(folder, "fp32"), plan_of(folder, *kinds), 20) for b in backends().values()]
        np.testing.assert_allclose(curves[0], curves[1], atol=1e-3)


def test_numbers_rates_and_refusals(tiny: Path) -> None:
    plan = plan_of(tiny, "embeddings", "norms", also_train_rate=0.5)
    lora = 2 * 4 * (128 + 96 + 96 + 128)
    assert trainable_parameters(plan) == lora + 384 * 64 + NORMS
    assert trainable_parameters(plan_of(tiny, "norms")) == lora + NORMS
    lr_multipliers = tuner_of(plan).lr_multipliers(plan)
    assert lr_multipliers[EMBEDDING] == 0.5 and len(lr_multipliers) == 1 + 5
    with pytest.raises(SpecError, match=r"copied and trained in full.*Remove --also-train"):
        plan_of(tiny, "embeddings", targets=["embed_tokens", "attention"])
    with pytest.raises(SpecError):
        plan_of(tiny, "heads")


def test_a_copy_of_a_layer_in_the_blocks_is_refused(tmp_path: Path, tiny: Path) -> None:
    plan = plan_of(tiny, "norms")
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tuner_of(plan).shapes(plan).items()}
    write_adapter(tmp_path, plan, tensors, "tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8"))
    config["modules_to_save"].append("gate_proj")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    save_file(tensors | {"base_model.model.model.layers.0.mlp.gate_proj.weight": np.zeros((128, 64), np.float32)},
              tmp_path / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(AdapterError, match=r"full copy of model\.layers\.0\.mlp\.gate_proj"):
        read_adapter(tmp_path)


def test_a_bf16_base_is_trained_too(tmp_path: Path, backend: Backend) -> None:
    folder = tiny_model(tmp_path, dtype="bfloat16")
    losses = trained(backend.load(folder, "bf16"), plan_of(folder, "embeddings", "norms"), 10)
    assert losses[-1] < 0.9 * losses[0]


def test_checkpointing_and_noise_and_groups_go_with_copies(tmp_path: Path, backend: Backend) -> None:
    folder = tiny_model(tmp_path)
    curves = []
    for checkpointing in (False, True):
        session = backend.load(folder, "fp32")
        session.attach("a", plan_of(folder, "embeddings", "norms"), 1)
        session.prepare("a", TrainingSettings(attention="shifted", attention_group=6, neftune_alpha=5.0,
                                              gradient_checkpointing=checkpointing))  # fmt: skip
        curves.append([session.step([batch_of(3, 20)], SFT, 1e-2).loss for _ in range(5)])
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-5)


@BOTH
@PLAIN_PEFT
def test_norms_with_biases_are_copied_with_them(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 384, "pad_token_id": 0}
    config = AutoConfig.for_model("phi", **sizes, num_attention_heads=4, num_key_value_heads=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path / "base")
    tokenizer = tiny_model(tmp_path / "other") / "tokenizer.json"
    (tmp_path / "base" / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    plan = plan_of(tmp_path / "base", "norms", targets=["q_proj", "v_proj"])
    names = set(tuner_of(plan).shapes(plan))
    assert {"base_model.model.model.final_layernorm.weight", "base_model.model.model.final_layernorm.bias"} <= names
    assert tuner_of(plan).lr_multipliers(plan)["base_model.model.model.layers.0.input_layernorm.bias"] == 0.1
    sessions = {b.name: b.load(tmp_path / "base", "fp32") for b in backends().values()}
    one, other = (trained(session, plan, 10) for session in sessions.values())
    np.testing.assert_allclose(one, other, atol=1e-4)
    write_adapter(tmp_path / "adapter", plan, sessions["torch"].tensors("a"), "phi")
    read, values = read_adapter(tmp_path / "adapter")
    assert set(values) == names == set(tuner_of(read).shapes(read))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.no_grad():
        found = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))(torch.tensor([TEXT])).logits[0].numpy()
    np.testing.assert_allclose(found, sessions["torch"].logits(TEXT), atol=1e-5)
