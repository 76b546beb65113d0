"""Checks of a base model's stored tensors (names, dtypes, shapes) against its config.json.

The tensors are the truth and the config only claims. Where they disagree, a library would silently skip blocks, fill weights
with random numbers or read packed integers as weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune_local.spec.base.config import size_of
from finetune_local.spec.base.sizes import AGAIN, Weight, check_attention
from finetune_local.spec.targets import EMBEDDINGS, HEADS, block_of
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg

FLOATS = ("BF16", "F16", "F32", "F64")


_PACKED = (
    (re.compile(r"\.(absmax|quant_map|quant_state\.\w+|nested_absmax|nested_quant_map)$"), "bitsandbytes 4-bit"),
    (re.compile(r"\.SCB$"), "bitsandbytes 8-bit"),
    (re.compile(r"\.g_idx$"), "GPTQ"),
    (re.compile(r"\.qweight$"), "AWQ or GPTQ"),
    (re.compile(r"_blocks$"), "MXFP4"),
    (re.compile(r"\.weight_packed$"), "compressed-tensors"),
    (re.compile(r"\.weight_scale_inv$"), "fp8"),
    (re.compile(r"\.(weight_scale|input_scale|weight_zero_point)$"), "compressed-tensors or fp8"),
    (re.compile(r"\.W_q$"), "HQQ"),
    (re.compile(r"\.(codebooks|codes)$"), "AQLM"),
    (re.compile(r"\.(q_weight|trellis)$"), "EXL2 or EXL3"),
    (re.compile(r"\._(data|scale)$"), "quanto"),
)
_ANY_PACKED = re.compile("|".join(pattern.pattern for pattern, _ in _PACKED))
_WRAPPED = {
    "_orig_mod.": ("torch.compile", msg("save model._orig_mod")),
    "module.": ("DistributedDataParallel/DeepSpeed", msg("save model.module")),
    "_fsdp_wrapped_module.": ("FSDP", msg("save the full state dict")),
    "_checkpoint_wrapped_module.": ("checkpoint_wrapper", msg("save the model inside the wrapper")),
    "base_model.model.": ("PEFT", msg("save the result of model.merge_and_unload()")),
}
_ANY_WRAPPED = re.compile(
    r"(?:^|\.)(_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.)|^(module\.|base_model\.model\.)"
)
_ADAPTED = re.compile(
    r"\.(base_layer\.(weight|bias)|lora_[AB](\.\w+)?\.weight|lora_magnitude_vector(\.\w+)?(\.weight)?)$"
)
_BUFFERS = re.compile(
    r"(rotary_emb\.\w*inv_freq|position_ids|masked_bias|causal_mask|(cos|sin)_cached|num_batches_tracked|embed_positions\.weights|"
    r"(^|\.)version)$|\.(attn|attention)\.bias$"
)
"""Tensors that older checkpoints store and every library recomputes."""

OTHER_PARTS = re.compile(
    r"(^|\.|_)(vision|visual|audio|image|video|speech|mtp|talker|code2wav|token2wav|multi_modal|embed_vision)"
)
"""Parts of a model beside its language model: vision, audio and multi-token prediction."""

# Searching all names at once is fast; names are examined individually only if one is found.
_SIGNS_OF_WRAPPERS = ("_orig_mod.", "\nmodule.", "_wrapped_module.", "\nbase_model.model.", "base_layer.", "lora_")
_SIGNS_OF_PACKING = ("absmax", "quant_", ".SCB", "_idx", "qweight", "_blocks", "packed", "scale", ".W_q", ".code", "q_weight", "trellis",
                     "._data", "zero_point")  # fmt: skip
_SIGNS_OF_PARTS = (
    "vision",
    "visual",
    "audio",
    "image",
    "video",
    "speech",
    "mtp",
    "talker",
    "code2wav",
    "token2wav",
    "multi_modal",
)
_TABLES, _HEADS = (tuple(f"{name}.weight" for name in names) for names in (EMBEDDINGS, HEADS))

PLAIN = frozenset(
    ["cohere", "cohere2", "gemma", "gemma2", "gemma3_text", "glm4", "granite", "llama", "mistral", "mixtral", "olmo2",
     "phi", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm", "starcoder2"]
)  # fmt: skip
"""Architectures whose q_proj, k_proj, v_proj have heads·head_dim rows."""

TIE = msg('If the head is the embedding, write "tie_word_embeddings": true.')


def is_buffer(name: str) -> bool:
    """Whether a tensor is a stored buffer that every library recomputes."""
    return _BUFFERS.search(name) is not None


def check_base_weights(config: Mapping[str, Any], weights: Mapping[str, Weight], where: Path | str) -> None:
    """Raise ModelError if tensors are packed or named by a wrapper, or contradict the config; `where` names the model."""
    names = "\n" + "\n".join(weights)
    if _has(names, _SIGNS_OF_WRAPPERS):
        _check_names(weights, where)
    _check_types(weights, where, _has(names, _SIGNS_OF_PACKING))
    if _has(names, _SIGNS_OF_PARTS):
        weights = {name: weight for name, weight in weights.items() if not OTHER_PARTS.search(name)}
    nested = config.get("text_config")
    if isinstance(nested, Mapping) and config.get("model_type") in PLAIN:
        raise ModelError(
            msg(
                "{where}: config.json has a part for a language model (text_config), which a {family} model does not "
                "have. Copy the file again from the model's source.",
                where=where,
                family=config["model_type"],
            )
        )
    text = nested if isinstance(nested, Mapping) else config
    _check_blocks(text, weights, where)
    family = str(text.get("model_type") or config.get("model_type"))
    _check_vocabulary(config, text, weights, where, family)
    if text is config and family in PLAIN:
        check_attention(config, family, weights, where)


def _check_names(weights: Iterable[str], where: Path | str) -> None:
    for name in weights:
        if found := _ANY_WRAPPED.search(name):
            wrapper, advice = _WRAPPED[found.group(1) or found.group(2)]
            raise ModelError(
                msg(
                    "{where}: its tensors have the names of a wrapper ({name}: {wrapper}), not the model's own, so they "
                    "would be ignored. Where the model was saved, {advice}.",
                    where=where,
                    name=short(name),
                    wrapper=wrapper,
                    advice=advice,
                )
            )
        if _ADAPTED.search(name):
            raise ModelError(
                msg(
                    "{where}: it was saved with an adapter still in it ({name}). Merge the adapter before saving (PEFT: "
                    "model.merge_and_unload()), or use the base and the adapter separately.",
                    where=where,
                    name=short(name),
                )
            )


def _check_types(weights: Mapping[str, Weight], where: Path | str, suspicious: bool) -> None:
    for name, weight in weights.items():
        if not suspicious and weight.dtype in FLOATS:
            continue
        packed = None
        if _ANY_PACKED.search(name):
            packed = next(kind for pattern, kind in _PACKED if pattern.search(name))
        elif name.endswith(".scales") and f"{name.removesuffix('scales')}biases" in weights:
            packed = "MLX"
        if packed == "AWQ or GPTQ":
            packed = "GPTQ" if f"{name.removesuffix('qweight')}g_idx" in weights else "AWQ"
        if packed == "MXFP4" and weight.dtype not in ("U8", "I8"):
            packed = None
        if packed is None and weight.dtype not in FLOATS and _is_number(name, weight):
            packed = "fp8" if weight.dtype.startswith("F8") else weight.dtype
        if packed is not None:
            raise ModelError(
                msg(
                    "{where}: its weights are already quantised ({kind}: {name} is of type {dtype}), though config.json "
                    "does not say so. Use the original unquantised model and --precision 4-bit: training then quantises "
                    "it, and exports lose nothing.",
                    where=where,
                    kind=packed,
                    name=short(name),
                    dtype=weight.dtype,
                )
            )


def _is_number(name: str, weight: Weight) -> bool:
    """Whether a tensor takes part in the computation, unlike masks and position ids of older checkpoints."""
    return (
        name.endswith("weight") or weight.dtype.startswith("F") or (name.endswith(".bias") and len(weight.shape) == 1)
    )


def _check_blocks(text: Mapping[str, Any], weights: Iterable[str], where: Path | str) -> None:
    keys = [key for key in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(text.get(key), int)]
    found = {block for name in weights if (block := block_of(name)) is not None}
    if not keys or not found:
        return
    key, stored, ahead = keys[0], max(found) + 1, size_of(text, "num_nextn_predict_layers")
    if any(int(text[one]) <= stored <= int(text[one]) + ahead for one in keys):
        return
    declared = int(text[key])
    what = (
        msg("the rest would be ignored") if declared < stored else msg("the rest would be filled with random numbers")
    )
    raise ModelError(
        msg(
            "{where}: config.json declares {declared} blocks ({key}), but the weights have {stored}: {what}. "
            '{again} If the weights are right, write "{key}": {stored}.',
            where=where,
            declared=declared,
            key=key,
            stored=stored,
            what=what,
            again=AGAIN,
        )
    )


def _check_vocabulary(
    config: Mapping[str, Any], text: Mapping[str, Any], weights: Mapping[str, Weight], where: Path | str, family: str
) -> None:
    tables = [n for n in weights if n.endswith(_TABLES) and ends_with(n, EMBEDDINGS) and block_of(n) is None]
    heads = [n for n in weights if n.endswith(_HEADS) and ends_with(n, HEADS) and block_of(n) is None]
    if family in PLAIN and text is config and not heads and tables and text.get("tie_word_embeddings") is False:
        raise ModelError(
            msg(
                "{where}: config.json says that the head is not the embedding (tie_word_embeddings: false), but the "
                "weights have no head (lm_head.weight): it would be filled with random numbers. {again} {tie}",
                where=where,
                again=AGAIN,
                tie=TIE,
            )
        )
    if heads and not tables and any(block_of(name) is not None for name in weights) and family in PLAIN:
        raise ModelError(
            msg("{where}: the weights have no embedding (model.embed_tokens.weight). {again}", where=where, again=AGAIN)
        )
    if len(tables) != 1 or len(weights[tables[0]].shape) != 2:
        return
    rows, width = weights[tables[0]].shape
    if isinstance(declared := text.get("vocab_size"), int) and declared != rows:
        raise ModelError(
            msg(
                "{where}: config.json declares {declared} tokens (vocab_size), but the embedding has {rows} rows. "
                '{again} If the weights are right, write "vocab_size": {rows}.',
                where=where,
                declared=declared,
                rows=rows,
                again=AGAIN,
            )
        )
    if family in PLAIN and isinstance(declared := text.get("hidden_size"), int) and declared != width:
        raise _misfit(where, "hidden_size", declared, tables[0], weights[tables[0]])
    pad = text.get("pad_token_id")
    if isinstance(pad, int) and pad >= rows:
        raise ModelError(
            msg(
                "{where}: config.json names token {pad} for padding (pad_token_id), but the embedding has {rows} "
                'rows. Write the number of one of its tokens, or "pad_token_id": null.',
                where=where,
                pad=pad,
                rows=rows,
            )
        )


def _misfit(where: Path | str, key: str, claimed: int, name: str, weight: Weight) -> ModelError:
    return ModelError(
        msg(
            "{where}: config.json declares {declared} ({key}), but {name} has the shape {shape}. {again}",
            where=where,
            declared=claimed,
            key=key,
            name=name,
            shape=list(weight.shape),
            again=AGAIN,
        )
    )


def _has(names: str, signs: tuple[str, ...]) -> bool:
    return any(sign in names for sign in signs)


def ends_with(name: str, modules: tuple[str, ...]) -> bool:
    """Whether it is the weight of a module that has one of these names."""
    return name.endswith(".weight") and name.removesuffix(".weight").rsplit(".", 1)[-1] in modules


def short(name: str) -> str:
    """A tensor's name as a sentence can show it."""
    shown = "".join(c if c.isprintable() else "?" for c in name)
    return shown if len(shown) <= 120 else shown[:120] + "…"
