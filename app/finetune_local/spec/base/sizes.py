"""Sizes that config.json declares for attention and MLP, checked against the stored matrices."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from finetune_local.spec.numerics.rope import rope
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import Message, msg

_PARTLY_ROTATED = frozenset(["glm4", "phi", "stablelm"])
_HEAD_DIMS = {
    "qwen3": 128,
    "glm4": 128,
    "gemma": 256,
    "gemma2": 256,
    "gemma3_text": 256,
    "seed_oss": 128,
}
"""transformers' default head_dim for these architectures; elsewhere it is hidden_size / heads."""

AGAIN = msg("Copy config.json and the weights again, both from the same place.")


class Weight(Protocol):
    """A stored tensor, as its header describes it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...

    @property
    def dtype(self) -> str:
        """Its dtype as safetensors spells it."""
        ...


def check_attention(config: Mapping[str, Any], family: str, weights: Mapping[str, Weight], where: Path | str) -> None:
    """Raise ModelError if an attention or MLP matrix does not have the sizes the config declares."""
    _check_rotation(config, family, where)
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not isinstance(hidden, int) or not isinstance(heads, int):
        return
    if family in _HEAD_DIMS and "head_dim" in config and config["head_dim"] is None:
        return
    head_dim = _head_dim(config, family, hidden, heads, where)
    groups = config.get("num_key_value_heads") or heads
    if not isinstance(head_dim, int) or not isinstance(groups, int):
        return
    expected = _expected_sizes(config, family, (hidden, heads, groups, head_dim))
    tails = tuple(f".{tail}" for tail in expected)
    for name, weight in weights.items():
        if name.endswith(tails) and weight.shape != expected[tail := ".".join(name.rsplit(".", 3)[1:])][1:]:
            raise ModelError(
                msg(
                    "{where}: {name} has the shape {shape}, but config.json ({what}, hidden_size {hidden}) implies "
                    "{expected}. {again}",
                    where=where,
                    name=name,
                    shape=list(weight.shape),
                    what=expected[tail][0],
                    hidden=hidden,
                    expected=list(expected[tail][1:]),
                    again=AGAIN,
                )
            )


def _check_rotation(config: Mapping[str, Any], family: str, where: Path | str) -> None:
    """Raise ModelError if the config rotates part of each head and the architecture cannot."""
    found = rope(config)
    partial = found.values.get("partial_rotary_factor") or 1
    if found.kind != "default" and partial != 1 and family not in _PARTLY_ROTATED:
        raise ModelError(
            msg(
                "{where}: config.json rotates only a part of each head (partial_rotary_factor {share}), which a "
                "{family} model cannot do. Copy the file again from the model's source.",
                where=where,
                share=partial,
                family=family,
            )
        )


def _head_dim(config: Mapping[str, Any], family: str, hidden: int, heads: int, where: Path | str) -> Any:
    """The head size: declared, the architecture's default, or hidden_size / heads. Raises ModelError if that is no integer."""
    declared = config.get("head_dim") or _HEAD_DIMS.get(family)
    if declared is not None:
        return declared
    if hidden % heads:
        raise ModelError(
            msg(
                "{where}: config.json has a width of {hidden} (hidden_size), which is not divisible by {heads} "
                "attention heads (num_attention_heads). {again}",
                where=where,
                hidden=hidden,
                heads=heads,
                again=AGAIN,
            )
        )
    return hidden // heads


def _expected_sizes(
    config: Mapping[str, Any], family: str, sizes: tuple[int, int, int, int]
) -> dict[str, tuple[Message, int, int]]:
    """End of a matrix's name -> what decides its rows, rows, columns; `sizes` are hidden, heads, key heads and head size."""
    hidden, heads, groups, head_dim = sizes
    expected = {
        "self_attn.q_proj.weight": (
            msg("{heads} heads of {size}", heads=heads, size=head_dim),
            heads * head_dim,
            hidden,
        ),
        "self_attn.o_proj.weight": (
            msg("{heads} heads of {size}", heads=heads, size=head_dim),
            hidden,
            heads * head_dim,
        ),
    }
    if "num_key_value_heads" in config:  # otherwise each architecture has its default
        shape = (msg("{heads} heads of {size}", heads=groups, size=head_dim), groups * head_dim, hidden)
        expected |= {"self_attn.k_proj.weight": shape, "self_attn.v_proj.weight": shape}
    inner = config.get("intermediate_size")
    if isinstance(inner, int) and not family.endswith("_moe"):
        expected["mlp.up_proj.weight"] = (
            msg("an inner width of {inner} (intermediate_size)", inner=inner),
            inner,
            hidden,
        )
        expected["mlp.down_proj.weight"] = (
            msg("an inner width of {inner} (intermediate_size)", inner=inner),
            hidden,
            inner,
        )
    return expected
