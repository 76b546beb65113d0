"""GGUF's number formats: which of them each tensor of a model gets.

The plain ones are the same for every matrix, but that the head keeps 8 bits. The K-quants (Q4_K_M and so on) are mixtures, as
llama.cpp's own llama-quantize makes them: the matrices that matter most get more bits (src/llama-quant.cpp,
llama_tensor_get_type_impl), and a matrix whose rows do not divide into a K-quant's 256 numbers gets the next plain format
(tensor_type_fallback there).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

MIXED: Mapping[str, tuple[str, str]] = {
    "q6_k": ("Q6_K", "Q6_K"),
    "q5_k_m": ("Q5_K", "Q6_K"),
    "q4_k_m": ("Q4_K", "Q6_K"),
}
"""The K-quants: the format of most matrices, and of those that matter most."""

QUANTS = ("f16", "bf16", "f32", "q8_0", *MIXED, "q5_1", "q5_0", "q4_1", "q4_0")
"""All that can be written, the default first."""

FILE_TYPES: Mapping[str, str] = {"f32": "ALL_F32", **{q: f"MOSTLY_{q.upper()}" for q in QUANTS if q != "f32"}}
"""The names of gguf.LlamaFileType."""

_FEW_BITS = ("q5_1", "q5_0", "q4_1", "q4_0")
_SMALL_BLOCK = 32
_K_BLOCK = 256
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def kind_of(name: str, shape: tuple[int, ...], quant: str, blocks: int, tied: bool) -> GGMLQuantizationType:
    """The number format of a tensor by its GGUF name; `tied`: the embedding is the head too. Vectors stay fp32."""
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    head = name == "output.weight" or (tied and name == "token_embd.weight")
    if quant in MIXED:
        chosen = MIXED[quant][1] if head else _mixed(name, quant, blocks)
    else:
        chosen = "Q8_0" if head and quant in _FEW_BITS else quant.upper()
    if chosen in _FALLBACK and shape[-1] % _K_BLOCK:
        chosen = _FALLBACK[chosen]
    if chosen.startswith("Q") and shape[-1] % _SMALL_BLOCK:
        chosen = "F16"
    return GGMLQuantizationType[chosen]


def is_k(kind: GGMLQuantizationType) -> bool:
    """Whether a format is one that only ggml itself can write."""
    return kind.name in _FALLBACK


def _mixed(name: str, quant: str, blocks: int) -> str:
    most, best = MIXED[quant]
    found = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    return best if found and _matters(int(found[1]), blocks) else most


def _matters(block: int, blocks: int) -> bool:
    """llama.cpp's use_more_bits: the first and the last eighth, and every third between them."""
    return block < blocks // 8 or block >= 7 * blocks // 8 or (block - blocks // 8) % 3 == 2
