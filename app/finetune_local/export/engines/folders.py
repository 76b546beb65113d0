"""The programs that open merged folders, and the models that mlx-lm is known not to support."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.system.messages import msg
from finetune_local.system.paths import assets

_SCRIPTS = assets() / "receivers"

# Model families that plain mlx-lm computes as transformers does; a test opens one of each. mlx-lm supports more, but some of those
# give silently wrong results.
MLX_LM_HOLDS = frozenset(
    (
        "apertus", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "falcon_h1", "gemma", "gemma2",
        "gemma3", "gemma3_text", "gemma4", "gemma4_text", "glm4", "glm4_moe", "gpt_neox", "granite", "granitemoe", "helium",
        "hunyuan_v1_dense", "internlm3", "lfm2", "lfm2_moe", "llama", "ministral3", "mistral", "mixtral", "nemotron",
        "nemotron_h", "olmo2", "olmo3", "olmoe", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next",
        "seed_oss", "smollm3", "stablelm", "starcoder2",
    )
)  # fmt: skip
_HEADLESS = ("cohere", "cohere2", "gemma", "gemma2", "gpt2", "lfm2", "lfm2_moe")
_OWN_HEAD = ("deepseek_v2", "deepseek_v3", "glm4", "glm4_moe", "nemotron_h", "phi", "qwen2_moe", "stablelm")
_PATTERNED = ("cohere2", "gemma3", "gemma3_text")
_WINDOWED = ("cohere2", "exaone4", "gemma3", "gemma3_text", "gemma4", "gemma4_text", "gpt_oss", "ministral3", "olmo3")


def _no_limit(_: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class Program:
    """A program that opens folders. `limit(config)` is the reason why it cannot run a model, "" if it can."""

    name: str
    worker: Path
    needs: Sequence[str]
    limit: Callable[[Mapping[str, Any]], str] = _no_limit
    note: Callable[[Mapping[str, Any]], str] = _no_limit
    most_prompts: int | None = None
    """Number of prompts, the shortest ones, whose answers are compared; None for all."""


def mlx_lm_limit(config: Mapping[str, Any]) -> str:
    """Why plain mlx-lm cannot run a merged folder with this config.json, as a sentence; "" if it can."""
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    family, kind = str(config.get("model_type")), str(text.get("model_type"))
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if family not in MLX_LM_HOLDS:
        return msg(
            "mlx-lm's class for models of the family '{family}' has not been verified against transformers",
            family=family,
        )
    if tied is False and kind in _HEADLESS:
        return msg(
            "mlx-lm's class for {family} has no separate head, and this model's head is not the embedding", family=kind
        )
    if tied and kind in _OWN_HEAD:
        return msg(
            "mlx-lm's class for {family} needs a separate head, and this model's head is the embedding", family=kind
        )
    types = text.get("layer_types")
    if isinstance(types, list) and "sliding_attention" in types:
        if kind in _PATTERNED and "sliding_window_pattern" not in text:
            return msg(
                "mlx-lm's class for {family} cannot compute this model's pattern of sliding-window layers", family=kind
            )
        if kind in _WINDOWED and "full_attention" not in types:
            return msg(
                "mlx-lm's class for {family} cannot compute a model whose layers all have a sliding window", family=kind
            )
    return ""


def mlx_lm_note(config: Mapping[str, Any]) -> str:
    """A note on partial support: a sliding window that mlx-lm's class ignores matters only for texts longer than the window."""
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    window, kind = text.get("sliding_window"), str(text.get("model_type"))
    if not isinstance(window, int) or text.get("use_sliding_window") is False or kind in _WINDOWED:
        return ""
    types = text.get("layer_types")
    if isinstance(types, list) and "sliding_attention" not in types:
        return ""
    return msg(
        "mlx-lm's class for {family} has no sliding window: it is exact only for texts of up to {n} tokens",
        family=kind,
        n=window,
    )


TRANSFORMERS = Program("transformers", _SCRIPTS / "open_with_transformers.py", ("torch", "transformers"))
# mlx's Linux wheels multiply matrices about 40 times slower than torch.
_FEW = None if sys.platform == "darwin" else 2
MLX_LM = Program("mlx-lm", _SCRIPTS / "open_with_mlx_lm.py", ("mlx", "mlx_lm"), mlx_lm_limit, mlx_lm_note, _FEW)
PROGRAMS: Sequence[Program] = (TRANSFORMERS, MLX_LM)
