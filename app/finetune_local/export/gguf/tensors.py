"""From Hugging Face's tensors to GGUF's: names, the order of rotary rows, and the number format of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_local.export.gguf.metadata import ARCHITECTURES, head_dim, needed
from finetune_local.export.gguf.quants import kind_of
from finetune_local.export.weights import Floats, MergedWeights
from finetune_local.spec.numerics.rope import rope
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg

_ROTATED = ("self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight", "self_attn.k_proj.bias")
_COMPUTED_ELSEWHERE = (
    "rotary_emb.inv_freq",
    "attn.masked_bias",
    "attn.bias",
)  # buffers of old checkpoints, not weights


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
