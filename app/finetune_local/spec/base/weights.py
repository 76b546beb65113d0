"""What the names, types and shapes of a base model's stored tensors say, held against its config.json.

The tensors are the truth and the config's numbers are claims: where they do not agree, a library would leave blocks out, fill weights
with random numbers or read packed integers as weights, all without a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from finetune_local.spec.base.config import size_of
from finetune_local.spec.numerics.rope import rope
from finetune_local.spec.targets import EMBEDDINGS, HEADS, block_of
from finetune_local.system.errors import ModelError

FLOATS = ("BF16", "F16", "F32", "F64")


class Weight(Protocol):
    """A stored tensor as its header tells it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its dimensions."""
        ...

    @property
    def dtype(self) -> str:
        """Type of its numbers in safetensors' words."""
        ...


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
    "_orig_mod.": ("torch.compile", "save model._orig_mod"),
    "module.": ("DistributedDataParallel/DeepSpeed", "save model.module"),
    "_fsdp_wrapped_module.": ("FSDP", "save the full state dict"),
    "_checkpoint_wrapped_module.": ("checkpoint_wrapper", "save the model inside the wrapper"),
    "base_model.model.": ("PEFT", "save the result of model.merge_and_unload()"),
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
"""What older checkpoints keep beside the weights and every library makes anew."""

_OTHER_PARTS = re.compile(
    r"(^|\.|_)(vision|visual|audio|image|video|speech|mtp|talker|code2wav|token2wav|multi_modal|embed_vision)"
)
"""Parts of a model beside its language model: what sees and hears, and what only guesses ahead."""

# Looking for these in all names at once is fast; each name is looked at only where one is found.
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
"""Families whose attention has q_proj, k_proj, v_proj of heads times head_dim rows."""

_PARTLY_ROTATED = frozenset(["glm4", "phi", "stablelm"])
_HEAD_DIMS = {
    "qwen3": 128,
    "glm4": 128,
    "gemma": 256,
    "gemma2": 256,
    "gemma3_text": 256,
    "seed_oss": 128,
}
"""What transformers takes where the config is silent; elsewhere hidden_size divided among the heads."""

_AGAIN = "Copy config.json and the weights again, both from the same place."
_TIE = 'If the head is the embedding, write "tie_word_embeddings": true.'


def is_buffer(name: str) -> bool:
    """Whether a tensor is no weight, but kept by older checkpoints and made anew by every library."""
    return _BUFFERS.search(name) is not None


def check_base_weights(config: Mapping[str, Any], weights: Mapping[str, Weight], where: Path | str) -> None:
    """Raise ModelError where tensors are packed or named by a wrapper, or the config claims what they are not; `where` is named."""
    names = "\n" + "\n".join(weights)
    if _has(names, _SIGNS_OF_WRAPPERS):
        _check_names(weights, where)
    _check_types(weights, where, _has(names, _SIGNS_OF_PACKING))
    if _has(names, _SIGNS_OF_PARTS):
        weights = {name: weight for name, weight in weights.items() if not _OTHER_PARTS.search(name)}
    nested = config.get("text_config")
    if isinstance(nested, Mapping) and config.get("model_type") in PLAIN:
        raise ModelError(
            f"{where}: config.json has a part for a language model (text_config), which a {config['model_type']} model has not. Copy the "
            "file again from where the model comes from."
        )
    text = nested if isinstance(nested, Mapping) else config
    _check_blocks(text, weights, where)
    family = str(text.get("model_type") or config.get("model_type"))
    _check_vocabulary(config, text, weights, where, family)
    if text is config and family in PLAIN:
        _check_attention(config, family, weights, where)


def _check_names(weights: Iterable[str], where: Path | str) -> None:
    for name in weights:
        if found := _ANY_WRAPPED.search(name):
            wrapper, advice = _WRAPPED[found.group(1) or found.group(2)]
            raise ModelError(
                f"{where}: its tensors have the names of a wrapper ({_short(name)}: {wrapper}), not the model's own, so they would "
                f"be left out. Where the model was saved, {advice}."
            )
        if _ADAPTED.search(name):
            raise ModelError(
                f"{where}: it was saved with an adapter still in it ({_short(name)}). Merge the adapter before saving "
                "(PEFT: model.merge_and_unload()), or give the base and the adapter apart."
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
                f"{where}: its weights are already quantised ({packed}: {_short(name)} is of type {weight.dtype}), though config.json "
                "does not say so. Use the original unquantised model and --precision 4-bit: training then quantises it, and exports "
                "lose nothing."
            )


def _is_number(name: str, weight: Weight) -> bool:
    """Whether a tensor is one that is computed with, and no mask or list of positions that an older checkpoint keeps."""
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
    said = int(text[key])
    what = "the rest would be left out" if said < stored else "the rest would be filled with random numbers"
    raise ModelError(
        f"{where}: config.json says {said} blocks ({key}), but the weights hold {stored}: {what}. {_AGAIN} "
        f'If the weights are right, write "{key}": {stored}.'
    )


def _check_vocabulary(
    config: Mapping[str, Any], text: Mapping[str, Any], weights: Mapping[str, Weight], where: Path | str, family: str
) -> None:
    tables = [n for n in weights if n.endswith(_TABLES) and _ends_with(n, EMBEDDINGS) and block_of(n) is None]
    heads = [n for n in weights if n.endswith(_HEADS) and _ends_with(n, HEADS) and block_of(n) is None]
    if family in PLAIN and text is config and not heads and tables and text.get("tie_word_embeddings") is False:
        raise ModelError(
            f"{where}: config.json says that the head is not the embedding (tie_word_embeddings: false), but the weights hold no "
            f"head (lm_head.weight): it would be filled with random numbers. {_AGAIN} {_TIE}"
        )
    if heads and not tables and any(block_of(name) is not None for name in weights) and family in PLAIN:
        raise ModelError(f"{where}: the weights hold no embedding (model.embed_tokens.weight). {_AGAIN}")
    if len(tables) != 1 or len(weights[tables[0]].shape) != 2:
        return
    rows, width = weights[tables[0]].shape
    if isinstance(said := text.get("vocab_size"), int) and said != rows:
        raise ModelError(
            f"{where}: config.json says {said} tokens (vocab_size), but the embedding has {rows} rows. {_AGAIN} "
            f'If the weights are right, write "vocab_size": {rows}.'
        )
    if family in PLAIN and isinstance(said := text.get("hidden_size"), int) and said != width:
        raise _misfit(where, "hidden_size", said, tables[0], weights[tables[0]])
    pad = text.get("pad_token_id")
    if isinstance(pad, int) and pad >= rows:
        raise ModelError(
            f"{where}: config.json names token {pad} for padding (pad_token_id), but the embedding has {rows} rows. Write the number of "
            'one of its tokens, or "pad_token_id": null.'
        )


def _check_attention(config: Mapping[str, Any], family: str, weights: Mapping[str, Weight], where: Path | str) -> None:
    """Every matrix of attention and MLP has the rows that the config's numbers give."""
    found = rope(config)
    partial = found.values.get("partial_rotary_factor") or 1
    if found.kind != "default" and partial != 1 and family not in _PARTLY_ROTATED:
        raise ModelError(
            f"{where}: config.json rotates a part of each head only (partial_rotary_factor {partial}), which a {family} model cannot. "
            "Copy the file again from where the model comes from."
        )
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int):
        return
    if family in _HEAD_DIMS and "head_dim" in config and config["head_dim"] is None:
        return
    head_dim = config.get("head_dim") or _HEAD_DIMS.get(family)
    if head_dim is None:
        if hidden % heads:
            raise ModelError(
                f"{where}: config.json divides a width of {hidden} (hidden_size) among {heads} attention heads "
                f"(num_attention_heads), which leaves a rest. {_AGAIN}"
            )
        head_dim = hidden // heads
    groups = config.get("num_key_value_heads") or heads
    if not isinstance(head_dim, int) or not isinstance(groups, int):
        return
    expected = {
        "self_attn.q_proj.weight": (f"{heads} heads of {head_dim}", heads * head_dim, hidden),
        "self_attn.o_proj.weight": (f"{heads} heads of {head_dim}", hidden, heads * head_dim),
    }
    if "num_key_value_heads" in config:  # where it is silent, each family has a number of its own
        shape = (f"{groups} heads of {head_dim}", groups * head_dim, hidden)
        expected |= {"self_attn.k_proj.weight": shape, "self_attn.v_proj.weight": shape}
    inner = config.get("intermediate_size")
    if isinstance(inner, int) and not family.endswith("_moe"):
        expected["mlp.up_proj.weight"] = (f"{inner} inner numbers (intermediate_size)", inner, hidden)
        expected["mlp.down_proj.weight"] = (f"{inner} inner numbers (intermediate_size)", hidden, inner)
    tails = tuple(f".{tail}" for tail in expected)
    for name, weight in weights.items():
        if name.endswith(tails) and weight.shape != expected[tail := ".".join(name.rsplit(".", 3)[1:])][1:]:
            raise ModelError(
                f"{where}: {name} has the shape {list(weight.shape)}, but by config.json ({expected[tail][0]}, hidden_size {hidden}) it "
                f"has {list(expected[tail][1:])}. {_AGAIN}"
            )


def explain(
    where: Path | str,
    family: str,
    missing: Collection[str],
    unexpected: Collection[str],
    misshapen: Collection[str] = (),
) -> str | None:
    """The sentence about tensors that a model of this family lacks, and about those it does not know; None where all is well."""
    strange = sorted(n for n in unexpected if not is_buffer(n) and not _OTHER_PARTS.search(n))
    lacking = sorted(missing)
    if lacking and strange and (names := _renamed(lacking, strange)):
        theirs, ours = names
        return (
            f"{where}: its tensors are named {theirs}…, and those of a {family} model {ours}…: they are of a model with several "
            "parts, or were saved by another program. Save the language model itself with save_pretrained()."
        )
    if misshapen:
        return (
            f"{where}: {len(misshapen)} weights have another shape than config.json gives them, the first is "
            f"{_short(min(misshapen))}. {_AGAIN}"
        )
    if lacking and all(_ends_with(name, HEADS) for name in lacking):
        return (
            f"{where}: the weights hold no head ({lacking[0]}), and config.json does not say that it is the embedding: it would be "
            f"filled with random numbers. {_AGAIN} {_TIE}"
        )
    if lacking:
        return (
            f"{where}: {len(lacking)} weights are missing or misshapen, the first is {_short(lacking[0])}: they would be filled with "
            f"random numbers. {_AGAIN}"
        )
    if strange:
        return (
            f"{where}: {len(strange)} of its tensors are none of a {family} model's and would be left out, the first is "
            f"{_short(strange[0])}. {_AGAIN}"
        )
    return None


def not_finite(where: Path | str, name: str, count: int) -> str:
    """The sentence about a weight that holds NaN or infinity."""
    return (
        f"{where}: {count} numbers of {_short(name)} are NaN or infinite, so nothing could be computed with it. The file is damaged, or "
        "the training it comes from failed: copy or download it again, or take an earlier version."
    )


def _renamed(missing: list[str], unexpected: list[str]) -> tuple[str, str] | None:
    """The beginnings of names by which most of both differ: ("model.language_model.", "model.")."""
    lacking = set(missing)
    found: Counter[tuple[str, str]] = Counter()
    for name in unexpected[:200]:
        parts = name.split(".")
        for cut in range(min(len(parts), 5)):
            tail = ".".join(parts[cut:])
            ours = next((begin for begin in ("", "model.", "transformer.") if begin + tail in lacking), None)
            if ours is not None:
                shared = f"{parts[cut]}." if not ours else ""  # so that both have something to show
                found["".join(f"{part}." for part in parts[:cut]) + shared, ours + shared] += 1
                break
    (names, count), *_ = found.most_common(1) or [(("", ""), 0)]
    return names if 2 * count >= min(len(unexpected), 200) and names[0] != names[1] else None


def _misfit(where: Path | str, key: str, said: int, name: str, weight: Weight) -> ModelError:
    return ModelError(
        f"{where}: config.json says {said} ({key}), but {name} has the shape {list(weight.shape)}. {_AGAIN}"
    )


def _has(names: str, signs: tuple[str, ...]) -> bool:
    return any(sign in names for sign in signs)


def _ends_with(name: str, modules: tuple[str, ...]) -> bool:
    return name.endswith(".weight") and name.removesuffix(".weight").rsplit(".", 1)[-1] in modules


def _short(name: str) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in name)
    return shown if len(shown) <= 120 else shown[:120] + "…"
