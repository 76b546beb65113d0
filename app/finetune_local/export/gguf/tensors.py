"""From a Hugging Face model to GGUF's metadata (sizes, rotary embedding, name, license) and tensors (name, row order, number format)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_local.export.gguf.quants import BY_KEY, kind_of
from finetune_local.export.targets.merged import license_of
from finetune_local.export.weights import EMBEDDING, Floats, MergedWeights
from finetune_local.models.folder import CONFIG, ModelFolder
from finetune_local.spec.numerics.rope import rope
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg

_ROTATED = ("self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight", "self_attn.k_proj.bias")
_COMPUTED_ELSEWHERE = (
    "rotary_emb.inv_freq",
    "attn.masked_bias",
    "attn.bias",
)  # buffers of old checkpoints, not weights

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model families that can be written, with llama.cpp's name of each."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor to be written: its GGUF name, logical shape, number format, and how to make it in fp32."""

    name: str
    shape: tuple[int, ...]
    kind: Any  # gguf.GGMLQuantizationType
    make: Callable[[], Floats]
    source: str = ""
    """Its Hugging Face name; "" for a computed tensor."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the array that is written: in bytes per row for packed formats, else `shape`."""
        from gguf import quants

        shape: tuple[int, ...] = quants.quant_shape_to_byte_shape(self.shape, self.kind) if self._packed else self.shape
        return shape

    @property
    def stored_dtype(self) -> npt.DTypeLike:
        """uint8 for packed formats, else the numpy type."""
        from gguf import GGMLQuantizationType

        if self._packed:
            return np.dtype(np.uint8)
        return np.dtype(np.float32 if self.kind == GGMLQuantizationType.F32 else np.float16)

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.stored_shape) * np.dtype(self.stored_dtype).itemsize

    @property
    def _packed(self) -> bool:
        from gguf import GGMLQuantizationType

        return self.kind not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16)


def gguf_tensors(weights: MergedWeights, quant: str) -> list[GgufTensor]:
    """Every tensor in the order of the base's blocks. Raises ModelError for a tensor llama.cpp has no name for."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    model = weights.model
    architecture = ARCHITECTURES[model.family]
    arch = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == architecture)
    names = get_tensor_name_map(arch, model.blocks)
    result = []
    for name, shape in weights.shapes().items():
        if name.endswith(_COMPUTED_ELSEWHERE):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError(
                msg(
                    "'{name}': llama.cpp's {architecture} has no tensor that corresponds to {name2}, so this model "
                    "cannot be exported to GGUF here. Export it with --to merged and try llama.cpp's "
                    "convert_hf_to_gguf.py on the folder.",
                    name=model.name,
                    architecture=architecture,
                    name2=name,
                )
            )
        kind = kind_of(target, shape, quant, model.blocks, weights.tied)
        result.append(GgufTensor(target, shape, kind, partial(_made, weights, name), name))
    if not weights.tied and not any(tensor.name == "output.weight" for tensor in result):
        raise ModelError(
            msg("{path}: lm_head.weight is missing, and config.json says that the head is not tied.", path=model.path)
        )
    if factors := _llama3_factors(weights):
        array = np.array(factors, np.float32)
        kind = kind_of("rope_freqs.weight", array.shape, quant, model.blocks, weights.tied)
        result.append(GgufTensor("rope_freqs.weight", array.shape, kind, lambda: array))
    return result


def rotary_order(weight: Floats, heads: int) -> Floats:
    """Rows of q or k from Hugging Face's halves (x₀…, x_{d/2}…) to llama.cpp's pairs (x₀, x_{d/2}, x₁, …), per head.

    `weight` is (heads·d, in) or (heads·d,); the inverse of what transformers' converter did to Meta's weights.
    """
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _made(weights: MergedWeights, name: str) -> Floats:
    weight = weights.read(name)
    if ARCHITECTURES[weights.model.family] == "llama" and name.endswith(_ROTATED):
        config = weights.model.text_config
        key = "num_attention_heads" if ".q_proj." in name else "num_key_value_heads"
        return rotary_order(weight, int(config.get(key) or config["num_attention_heads"]))
    return weight


def _llama3_factors(weights: MergedWeights) -> list[float]:
    """The divisor of each rotary frequency under Llama 3.1's scaling; empty for other kinds.

    Long wavelengths are divided by `factor`, short ones unchanged, those between interpolated (transformers'
    modeling_rope_utils, _compute_llama3_parameters).
    """
    config = weights.model.text_config
    found = rope(config)
    if found.kind != "llama3":
        return []
    factor, low, high = (
        needed(weights.model, found.values, key) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    context = float(found.values.get("original_max_position_embeddings") or weights.model.context_length)
    dims = head_dim(config)
    result = []
    for i in range(0, dims, 2):
        wavelength = 2 * math.pi * found.theta ** (i / dims)
        if wavelength < context / high:
            result.append(1.0)
        elif wavelength > context / low:
            result.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            result.append(1 / ((1 - smooth) / factor + smooth))
    return result


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
