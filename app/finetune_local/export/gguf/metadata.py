"""GGUF's description of a model: sizes, positions, name and license."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetune_local.export.gguf.quants import BY_KEY
from finetune_local.export.targets.merged import license_of
from finetune_local.export.weights import EMBEDDING, MergedWeights
from finetune_local.models.folder import CONFIG, ModelFolder
from finetune_local.spec.numerics.rope import rope
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model families that can be written, with llama.cpp's name of each."""


def add_metadata(writer: Any, weights: MergedWeights, quant: str) -> None:
    """Write all keys except the tokenizer's. Raises ModelError if llama.cpp would compute something different."""
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    model, config = weights.model, weights.model.text_config
    _check_computation(weights)
    writer.add_type("model")
    writer.add_name(f"{model.name} + {weights.run}" if weights.run else model.name)
    if license_name := license_of(model.path):
        writer.add_license(license_name)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(LlamaFileType[BY_KEY[quant].file_type])

    heads = int(needed(model, config, "num_attention_heads"))
    window = config.get("sliding_window") if model.family == "mistral" else None
    # llama.cpp's llama has no sliding window; up to the window's length both compute the same.
    writer.add_context_length(min(model.context_length, int(window or model.context_length)))
    writer.add_embedding_length(model.hidden_size)
    writer.add_block_count(model.blocks)
    writer.add_feed_forward_length(int(needed(model, config, "intermediate_size")))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_vocab_size(weights.shapes()[EMBEDDING][0])
    _add_rope(writer, weights)


class Nowhere:
    """A writer that discards everything, to check only whether a model can be described."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def needed(model: ModelFolder, values: Mapping[str, Any], key: str) -> float:
    """A required number of the config. Raises ModelError if it is missing."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ModelError(msg("{path}: '{key}' is missing. Copy the file again.", path=model.path / CONFIG, key=key))
    return value


def head_dim(config: Mapping[str, Any]) -> int:
    """Width of one attention head; Qwen3's default is 128."""
    if config.get("head_dim"):
        return int(config["head_dim"])
    if config.get("model_type") == "qwen3":
        return 128
    return int(config.get("hidden_size") or 0) // max(1, int(config.get("num_attention_heads") or 1))


def _add_rope(writer: Any, weights: MergedWeights) -> None:
    from gguf import RopeScalingType

    model = weights.model
    found = rope(model.text_config)
    writer.add_rope_dimension_count(head_dim(model.text_config))
    writer.add_rope_freq_base(found.theta)
    if found.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(needed(model, found.values, "factor"))
    elif found.kind == "yarn":
        factor = needed(model, found.values, "factor")
        original = found.values.get("original_max_position_embeddings") or model.context_length
        expected = 0.1 * math.log(factor) + 1.0
        attention = found.values.get("attention_factor")
        if found.values.get("mscale_all_dim") or (attention and not math.isclose(attention, expected, rel_tol=1e-4)):
            raise _other_rope(weights, msg("yarn with its own attention factor"))
        if found.values.get("truncate") is False:
            raise _other_rope(weights, msg("yarn without rounding"))
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(int(original))
        writer.add_rope_scaling_yarn_beta_fast(float(found.values.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(found.values.get("beta_slow") or 1))
    elif found.kind != "default" and not (found.kind == "llama3" and ARCHITECTURES[model.family] == "llama"):
        # llama3's scaling is stored as a tensor, rope_freqs.weight, which llama.cpp reads only for its llama
        raise _other_rope(weights, found.kind)


def _check_computation(weights: MergedWeights) -> None:
    model, config = weights.model, weights.model.text_config
    if config.get("hidden_act", "silu") != "silu":
        raise ModelError(
            msg(
                "'{model}' uses the activation '{activation}', but llama.cpp's {architecture} supports only SiLU: "
                "its answers would be wrong. Export it with --to merged.",
                model=model.name,
                activation=config["hidden_act"],
                architecture=ARCHITECTURES[model.family],
            )
        )
    if float(rope(config).values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise _other_rope(weights, msg("partial rotation"))
    if model.family.startswith("qwen") and config.get("use_sliding_window") and config.get("sliding_window"):
        raise ModelError(
            msg(
                "'{model}' uses sliding-window attention, which llama.cpp's {architecture} does not: its answers "
                "would be wrong. Export it with --to merged.",
                model=model.name,
                architecture=ARCHITECTURES[model.family],
            )
        )


def _other_rope(weights: MergedWeights, kind: str) -> ModelError:
    return ModelError(
        msg(
            "'{model}' encodes positions by '{kind}', which cannot be written to GGUF here (known: default, "
            "linear, yarn, llama3). Export it with --to merged, then try llama.cpp's convert_hf_to_gguf.py on "
            "the folder.",
            model=weights.model.name,
            kind=kind,
        )
    )
