"""Merged folders of every family that plain mlx-lm is said to hold compute there, and in plain transformers, as the base does.

A family is made tiny by transformers' own class, with the settings below; what a family needs beside the common ones stands behind it.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.export.targets.merged import write_merged
from finetune_local.export.verification.receivers import MLX_LM, MLX_LM_HOLDS, mlx_lm_limit, mlx_lm_note
from finetune_local.models.folder import ModelFolder
from tiny import tiny_model

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "mlx_lm")),
    reason="torch and mlx-lm are both needed",
)

IDS = list(range(40, 70))
COMMON = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
HEAD_DIM = {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16, "num_key_value_heads": 4}
ROUTED = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "topk_group": 1}
WINDOW = {"sliding_window": 64}
GEMMA3 = {**COMMON, **HEAD_DIM, **WINDOW, "query_pre_attn_scalar": 16, "num_hidden_layers": 6}
GEMMA4 = {**COMMON, **HEAD_DIM, **WINDOW, "global_head_dim": 16, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 384,
          "num_kv_shared_layers": 0, "num_hidden_layers": 6}  # fmt: skip
VISION = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "apertus": {}, "cohere": {}, "ernie4_5": HEAD_DIM, "gemma": HEAD_DIM, "glm4": HEAD_DIM, "helium": HEAD_DIM, "llama": HEAD_DIM,
    "hunyuan_v1_dense": HEAD_DIM, "internlm3": HEAD_DIM, "ministral3": HEAD_DIM, "mistral": HEAD_DIM, "nemotron": HEAD_DIM,
    "olmo2": {}, "phi": {}, "phi3": {}, "qwen2": {}, "qwen3": HEAD_DIM, "seed_oss": HEAD_DIM, "smollm3": HEAD_DIM, "stablelm": {},
    "starcoder2": {}, "granitemoe": EXPERTS, "mixtral": {**HEAD_DIM, **EXPERTS}, "olmoe": EXPERTS,
    "qwen3_moe": {**HEAD_DIM, **EXPERTS}, "cohere2": {**HEAD_DIM, **WINDOW, "num_hidden_layers": 4},
    "exaone4": {**WINDOW, "num_hidden_layers": 4}, "olmo3": {**WINDOW, "num_hidden_layers": 4},
    "gemma2": {**HEAD_DIM, **WINDOW, "query_pre_attn_scalar": 16}, "gpt_neox": {"intermediate_size": 256},
    "granite": {"attention_multiplier": 0.25, "logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3_next": {**HEAD_DIM, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 32, "num_hidden_layers": 4,
                   "layer_types": ["linear_attention", "full_attention"] * 2},
    "glm4_moe": {**HEAD_DIM, **ROUTED, "n_group": 1},
    "deepseek_v2": {**LATENT, **ROUTED, "q_lora_rank": None, "n_group": 1},
    "deepseek_v3": {**LATENT, **ROUTED, "q_lora_rank": 32, "n_group": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 64},
    "lfm2_moe": {**EXPERTS, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "falcon_h1": {**HEAD_DIM, "mamba_d_ssm": 128, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16,
                   "n_groups": 1},
}  # fmt: skip
WHOLE: dict[str, dict[str, Any]] = {
    "gemma3_text": GEMMA3,
    "gemma3": {"text_config": GEMMA3, "vision_config": VISION, "mm_tokens_per_image": 4},
    "gemma4_text": GEMMA4,
    "gemma4": {"text_config": {**GEMMA4, "model_type": "gemma4_text"}, "vision_config": None, "audio_config": None},
    **{family: {**COMMON, **more} for family, more in MORE.items()},
}


def made(family: str, folder: Path) -> np.ndarray:
    """Write a tiny base; returns its logits after IDS."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**WHOLE[family]), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2 and "conv" not in name:
                table = "embed" in name or "lm_head" in name
                weight.normal_(0, (0.06 if "gemma" in family else 0.15) if table else 1 / math.sqrt(weight.shape[-1]))
    model.eval().save_pretrained(folder)
    tiny_model(folder.with_name("tokenizer"), "qwen2")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((folder.with_name("tokenizer") / name).read_bytes())
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([IDS])).logits[0].numpy()
    return logits


def test_each_family_that_is_said_to_be_held_is_tried() -> None:
    assert WHOLE.keys() == MLX_LM_HOLDS


@pytest.mark.parametrize("family", sorted(WHOLE))
def test_both_programs_compute_a_merged_folder_as_its_base(family: str, tmp_path: Path) -> None:
    import mlx.core as mx
    import torch
    from mlx_lm.utils import load_model
    from transformers import AutoModelForCausalLM

    wanted = made(family, tmp_path / "base")
    write_merged(ModelFolder.open(tmp_path / "base"), None, tmp_path / "out")
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out")).eval()
        theirs = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(theirs - wanted).max() < 1e-4
    assert MLX_LM.limit(json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))) == ""
    found = np.array(load_model(tmp_path / "out")[0](mx.array([IDS]))[0].astype(mx.float32))
    # Two classes of mlx-lm have another approximation of GELU.
    assert np.abs(found - wanted).max() < (3e-3 if family in ("gpt_neox", "starcoder2", "gemma") else 1e-3)


def test_what_mlx_lm_does_not_hold_is_known_by_its_config() -> None:
    sliding, window = ["sliding_attention"] * 2, {"sliding_window": 64}
    assert "family 'glm'" in mlx_lm_limit({"model_type": "glm"})
    assert "no separate head" in mlx_lm_limit({"model_type": "gemma2", "tie_word_embeddings": False})
    assert "needs a separate head" in mlx_lm_limit({"model_type": "glm4", "tie_word_embeddings": True})
    assert "pattern of sliding" in mlx_lm_limit({"model_type": "cohere2", "layer_types": sliding, **window})
    assert "all have a sliding window" in mlx_lm_limit({"model_type": "olmo3", "layer_types": sliding, **window})
    assert mlx_lm_limit({"model_type": "llama", "tie_word_embeddings": True}) == ""
    assert "up to 4096 tokens" in mlx_lm_note({"model_type": "mistral", "sliding_window": 4096})
    assert mlx_lm_note({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}) == ""
    assert mlx_lm_note({"model_type": "llama"}) == ""
