"""Both backends against each other, in fp32: logits, loss curves, and adapters carried over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import log_softmax
from finetune_local.backend import Session, backends
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import TrainingSettings
from finetune_local_backends.mlx.base.config import CHECKED
from tasks import batch_of, plan_of
from tiny import FAMILIES, MORE_FAMILIES, tiny_model

TORCH, MLX = backends()["torch"], backends()["mlx"]
if lacking := [b.name for b in (TORCH, MLX) if b.missing()]:
    pytest.skip(f"parity needs both backends; missing: {', '.join(lacking)}", allow_module_level=True)

SFT = objectives()["sft"]
IDS = np.random.default_rng(5).integers(3, 380, 50).tolist()
PROMISED = 1e-3  # what the app promises of losses and logits; what is seen is below 2e-5
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
}


def gap(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def change(folder: Path, **fields: Any) -> None:
    """Change config.json; a value of None takes the field away."""
    path = folder / "config.json"
    values = json.loads(path.read_text("utf-8"))
    values.update(fields)
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), "utf-8")


def both(folder: Path) -> tuple[Session, Session]:
    return TORCH.load(folder, "fp32", "cpu"), MLX.load(folder, "fp32", "cpu")


@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_logits_are_equal(tmp_path: Path, family: str) -> None:
    folder = tiny_model(tmp_path / "模型 model", family)
    one, other = (s.logits(IDS) for s in both(folder))
    assert np.abs(one).max() > 1
    assert gap(one, other) < PROMISED / 10


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
PECULIAR: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "ernie4_5": {},
    "glm4": {"head_dim": 16, "partial": 0.5},
    "granite": {
        "embedding_multiplier": 2.0,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4},
    "nemotron": {"partial": 0.5},
    "olmo2": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phi": {"partial": 0.5},
    "phi3": {},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**EXPERTS, "norm_topk_prob": True, "head_dim": 16},
    "seed_oss": {"head_dim": 16},
    "smollm3": {"no_rope_layer_interval": 2},
    "stablelm": {"partial": 0.5},
}


@pytest.mark.parametrize("family", sorted(CHECKED - set(FAMILIES + MORE_FAMILIES)))
def test_every_family_that_mlx_lets_in_equals_transformers(tmp_path: Path, family: str) -> None:
    """Made by transformers itself, with what is peculiar to the family set to values that show; head and body apart too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    given = dict(PECULIAR[family])
    rope = {"rope_type": "default", "rope_theta": 50_000.0}
    if partial := given.pop("partial", None):
        rope["partial_rotary_factor"] = partial
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 384, "pad_token_id": 0}
    config = AutoConfig.for_model(family, **sizes, **heads, **given, rope_parameters=rope)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # transformers begins so small that every token would have nearly the same logits
        expected = model(torch.tensor([IDS])).logits[0].numpy()
    model.save_pretrained(tmp_path)
    session = MLX.load(tmp_path, "fp32", "cpu")
    assert expected.std(axis=0).max() > 0.05
    assert gap(session.logits(IDS), expected) < PROMISED / 10
    spread = np.arange(len(IDS)) > 0
    batch = Batch(np.array([IDS], np.int32), np.array([len(IDS)], np.int32), spread[None])
    logprobs = log_softmax(expected)
    np.testing.assert_allclose(session.score(batch), logprobs[np.arange(len(IDS) - 1), IDS[1:]], atol=PROMISED / 10)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_logits_differ_without_normalising_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """The negative control of the test above: what mlx-lm makes of a transformers-5 config by itself is wrong."""
    monkeypatch.setattr("finetune_local_backends.mlx.base.config.normalised", lambda config: config)
    one, other = (s.logits(IDS) for s in both(tiny_model(tmp_path, family)))
    assert gap(one, other) > 10 * PROMISED


@pytest.mark.parametrize("kind", ROPES)
def test_scaled_ropes_are_equal(tmp_path: Path, kind: str) -> None:
    folder = tiny_model(tmp_path)
    plain = MLX.load(folder, "fp32", "cpu").logits(IDS)
    change(folder, rope_parameters={"rope_theta": 50_000.0, **ROPES[kind]})
    one, other = (s.logits(IDS) for s in both(folder))
    assert gap(plain, other) > PROMISED
    assert gap(one, other) < PROMISED


def test_configs_of_older_transformers_are_equal(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    change(folder, rope_parameters=None, rope_theta=50_000.0, rope_scaling={"type": "linear", "factor": 2.0})
    one, other = (s.logits(IDS) for s in both(folder))
    assert gap(one, other) < PROMISED / 10


def test_a_field_left_out_has_the_same_default_on_both(tmp_path: Path) -> None:
    """transformers takes a Llama's head as its own unless told otherwise; mlx-lm's class takes it as tied."""
    folder = tiny_model(tmp_path, tied=False)
    change(folder, tie_word_embeddings=None, rope_parameters=None)
    one, other = (s.logits(IDS) for s in both(folder))
    assert gap(one, other) < PROMISED / 10


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2"])
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_twenty_steps_and_the_adapters_are_equal(tmp_path: Path, family: str, method: str) -> None:
    folder = tiny_model(tmp_path, family)
    sessions = both(folder)
    plan = plan_of(folder, method)
    training = TrainingSettings(weight_decay=0.01, max_gradient_norm=1.0)
    batches = [batch_of(seed=n) for n in range(3)]
    rate = 1e-3 if method == "full" else 5e-3
    curves, norms = [], []
    for session in sessions:
        session.attach("a", plan, seed=3)
        session.prepare("a", training)
        results = [session.step([batches[n % 3], batches[(n + 1) % 3]], SFT, rate) for n in range(20)]
        curves.append([r.loss for r in results])
        norms.append([r.gradient_norm for r in results])
    assert curves[0][-1] < curves[0][0] - 0.3
    assert gap(curves[0], curves[1]) < PROMISED
    np.testing.assert_allclose(norms[1], norms[0], rtol=5e-3)

    own, trained = [s.logits(IDS) for s in sessions], [s.tensors("a") for s in sessions]
    assert trained[0].keys() == trained[1].keys()
    for number, session in enumerate(sessions):
        session.attach("carried", plan, seed=0, tensors=trained[1 - number])
        assert gap(session.logits(IDS), own[1 - number]) < PROMISED
        session.activate(None)
        assert gap(session.logits(IDS), own[1 - number]) > 100 * PROMISED
