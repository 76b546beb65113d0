"""GGUF's quantization types, and the number format of each tensor in each of them.

A plain type uses one format for every matrix, except that the head keeps 8 bits. The K-quants (Q4_K_M and so on) are mixtures, as
llama.cpp's llama-quantize makes them: the matrices that matter most get more bits (src/llama-quant.cpp,
llama_tensor_get_type_impl), and a matrix whose rows do not divide into a K-quant's blocks of 256 gets the next plain format
(tensor_type_fallback there).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_local.export.targets import Quant
from finetune_local.export.verification.compare import BF16, F16, F32, Limits

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_ADVICE = " So few bits are too few for this model: choose q8_0 or f16."
_Q5, _Q4 = Limits(0.3, None, _ADVICE), Limits(0.6, None, _ADVICE)
_SMALL_BLOCK = 32
_K_BLOCK = 256
_FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


@dataclass(frozen=True, kw_only=True)
class GgufQuant(Quant):
    """A quantization type of GGUF. `limits` is how far the verification lets it differ from base + adapter."""

    limits: Limits
    mixture: tuple[str, str] | None = None
    """For a K-quant: the number format of most matrices, and that of the most important ones."""
    coarse_head: bool = True
    """Whether the head has the format of all other matrices; otherwise it has 8 bits."""

    @property
    def file_type(self) -> str:
        """The name in gguf.LlamaFileType."""
        return "ALL_F32" if self.title == "F32" else f"MOSTLY_{self.title}"


QUANTS: tuple[GgufQuant, ...] = (
    GgufQuant("f16", "F16", "Keeps everything the training changed. The first choice for models below 2 billion parameters.", limits=F16),
    GgufQuant("bf16", "BF16", "Like F16 with coarser numbers and a wider range: for bases that were published in BF16.", False, limits=BF16),
    GgufQuant("f32", "F32", "Exact and large: for comparing, or for making other types from it.", False, limits=F32),
    GgufQuant("q8_0", "Q8_0", "Half the size of F16 with hardly any difference. Good wherever there is room.", limits=Limits(5e-2, None)),
    GgufQuant(
        "q6_k", "Q6_K", "Smaller than Q8_0 and nearly as close. For models of 3 billion parameters and more.", False,
        limits=Limits(1e-1, None, _ADVICE), mixture=("Q6_K", "Q6_K"),
    ),
    GgufQuant(
        "q5_k_m", "Q5_K_M", "A good compromise for models of 3 billion parameters and more; the wording changes now and then.",
        limits=_Q5, mixture=("Q5_K", "Q6_K"),
    ),
    GgufQuant(
        "q4_k_m", "Q4_K_M", "The usual choice for large models on small computers. Small models may lose some of what they learned.",
        limits=_Q4, mixture=("Q4_K", "Q6_K"),
    ),
    GgufQuant(
        "q5_1", "Q5_1", "Like Q5_K_M, for programs that know only the older types.", False, limits=_Q5, coarse_head=False
    ),
    GgufQuant("q5_0", "Q5_0", "A little smaller and less exact than Q5_1.", False, limits=_Q5, coarse_head=False),
    GgufQuant(
        "q4_1", "Q4_1", "Like Q4_K_M, for programs that know only the older types.", False, limits=_Q4, coarse_head=False
    ),
    GgufQuant("q4_0", "Q4_0", "The smallest and least exact; fast on some phones.", False, limits=_Q4, coarse_head=False),
)  # fmt: skip
"""All that can be written, the default first."""

BY_KEY: Mapping[str, GgufQuant] = {quant.key: quant for quant in QUANTS}


def kind_of(name: str, shape: tuple[int, ...], quant: str, blocks: int, tied: bool) -> GGMLQuantizationType:
    """The number format of a tensor by its GGUF name; `tied`: the embedding is the head too. Vectors stay fp32."""
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    head = name == "output.weight" or (tied and name == "token_embd.weight")
    chosen = BY_KEY[quant]
    if chosen.mixture is not None:
        most, best = chosen.mixture
        number_format = best if head or _gets_more_bits(name, blocks) else most
    else:
        number_format = "Q8_0" if head and not chosen.coarse_head else chosen.title
    if number_format in _FALLBACK and shape[-1] % _K_BLOCK:
        number_format = _FALLBACK[number_format]
    if number_format.startswith("Q") and shape[-1] % _SMALL_BLOCK:
        number_format = "F16"
    return GGMLQuantizationType[number_format]


def is_k(kind: GGMLQuantizationType) -> bool:
    """Whether a format is one that only ggml itself can write."""
    return kind.name in _FALLBACK


def _gets_more_bits(name: str, blocks: int) -> bool:
    """Whether a K-quant uses more bits for a matrix (llama.cpp's use_more_bits)."""
    found = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    return found is not None and _matters(int(found[1]), blocks)


def _matters(block: int, blocks: int) -> bool:
    """Whether a block is in the first or the last eighth, or every third one between them."""
    return block < blocks // 8 or block >= 7 * blocks // 8 or (block - blocks // 8) % 3 == 2
