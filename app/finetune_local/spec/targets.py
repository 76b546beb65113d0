"""Selection of target modules by name, the settings for it, and what backward saves for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from finetune_local.spec.plan import Target, WeightInfo
from finetune_local.system.errors import AdapterError, SpecError
from finetune_local.system.fields import Settings, did_you_mean, setting
from finetune_local.system.messages import msg

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj")
MLP = ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
HEADS = ("lm_head", "embed_out")
_NORM = re.compile(r"norm|^ln_")
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.([0-9]{1,6})\.")

_SHARED = (("q_proj", "k_proj", "v_proj", "qkv_proj"), ("gate_proj", "up_proj", "gate_up_proj", "fc1"))
"""Layers of a block that read the same vector."""

_THERE = ("o_proj", "out_proj")
"""Layers whose input is attention's output, which attention saves anyway."""


class InBlocks(Settings):
    """Settings of tuners that work inside the transformer blocks."""

    layers: str = setting("all", help="Which blocks: all, last:8, or a list such as 0-3,7.", group="method")


class AtLinear(InBlocks):
    """Settings of tuners that work at linear layers."""

    targets: tuple[str, ...] = setting(
        ("all-linear",),
        help="Which layers: all-linear, attention, mlp, or names such as q_proj (repeatable).",
        group="method",
        flag="--target",
        metavar="NAME",
    )


@lru_cache(maxsize=1 << 15)
def block_of(name: str) -> int | None:
    """Number of the transformer block a weight belongs to; None outside the blocks."""
    found = _BLOCK.search(name)
    return int(found.group(1)) if found else None


def linear_modules(weights: Mapping[str, WeightInfo]) -> dict[str, Target]:
    """Every 2-D `.weight` inside the blocks, in natural order of the names."""
    result = {}
    for name in sorted(weights, key=_natural):
        shape = weights[name].shape
        if name.endswith(".weight") and len(shape) == 2 and block_of(name) is not None:
            module = name.removesuffix(".weight")
            result[module] = Target(module, shape[1], shape[0])
    return result


def is_embedding(module: str) -> bool:
    """Whether a module outside the blocks is the token embedding."""
    return module.rsplit(".", 1)[-1] in EMBEDDINGS and block_of(module + ".") is None


def is_head(module: str) -> bool:
    """Whether a module outside the blocks computes logits."""
    return module.rsplit(".", 1)[-1] in HEADS and block_of(module + ".") is None


def is_norm(module: str) -> bool:
    """Whether a module is a norm: input_layernorm, q_norm, final_layer_norm, ln_f."""
    return bool(_NORM.search(module.rsplit(".", 1)[-1]))


def check_inside(modules: Iterable[str], what: str) -> None:
    """Raise AdapterError if an adapter's file has `what` outside the blocks, where it is not implemented."""
    for module in modules:
        if block_of(module + ".") is None:
            raise AdapterError(
                msg(
                    "the adapter has {what} at {module}, which this version supports only inside the blocks. Merge the "
                    "adapter into its base with PEFT, or train it again without that layer.",
                    what=what,
                    module=module,
                )
            )


def outside_modules(weights: Mapping[str, WeightInfo]) -> dict[str, Target]:
    """The embedding and the head by module; a tied head has no weight and gets the embedding's shape."""
    result = {}
    for name, info in weights.items():
        module = name.removesuffix(".weight")
        known = module != name and module.rsplit(".", 1)[-1] in (*EMBEDDINGS, *HEADS)
        if known and len(info.shape) == 2 and block_of(name) is None:
            result[module] = Target(module, info.shape[1], info.shape[0])
    embeddings = [target for module, target in result.items() if is_embedding(module)]
    if len(embeddings) == 1 == len(result):
        result[HEADS[0]] = Target(HEADS[0], embeddings[0].in_features, embeddings[0].out_features)
    return dict(sorted(result.items(), reverse=True))


def select_linear(weights: Mapping[str, WeightInfo], names: tuple[str, ...], layers: str) -> tuple[Target, ...]:
    """The targets selected by `names` and `layers`. Raises SpecError listing what exists if nothing matches."""
    linear = linear_modules(weights)
    last = {module.rsplit(".", 1)[-1] for module in linear}
    selected: set[str] = set()
    for name in names:
        if name == "all-linear":
            chosen = set(linear)
        elif name == "attention":
            chosen = {m for m in linear if m.rsplit(".", 1)[-1] in ATTENTION}
        elif name == "mlp":
            chosen = {m for m in linear if m.rsplit(".", 1)[-1] in MLP}
        else:
            chosen = {m for m in linear if m == name or m.endswith("." + name)}
        if not chosen:
            raise SpecError(
                msg(
                    "--target {name}: this model has no linear layer with that name.{did_you_mean} It has: {names}.",
                    name=name,
                    did_you_mean=did_you_mean(name, sorted(last)),
                    names=", ".join(sorted(last)) or "none",
                )
            )
        selected |= chosen
    blocks = parse_layers(layers, 1 + max((block_of(m) or 0 for m in linear), default=-1))
    found = tuple(t for m, t in linear.items() if m in selected and block_of(m) in blocks)
    if not found:
        raise SpecError(
            msg(
                "--target {names} --layers {layers}: none of these layers are in these blocks.",
                names=", ".join(names),
                layers=layers,
            )
        )
    return found


def parse_layers(text: str, count: int) -> set[int]:
    """Block numbers of "all", "first:N", "last:N" or "0-3,7". Raises SpecError if malformed or out of range."""
    if text == "all":
        return set(range(count))
    if match := re.fullmatch(r"(first|last):([0-9]{1,9})", text):
        n = int(match.group(2))
        if not 1 <= n <= count:
            raise SpecError(
                msg(
                    "--layers {text}: this model has {count} blocks. Use a number from 1 to {count}.",
                    text=text,
                    count=count,
                )
            )
        return set(range(n)) if match.group(1) == "first" else set(range(count - n, count))
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        if not match:
            raise SpecError(
                msg(
                    "--layers {text} is not valid. Use all, last:8, first:4 or a list such as 0-3,7.",
                    text=repr(text),
                )
            )
        low, high = int(match.group(1)), int(match.group(2) or match.group(1))
        if high >= count or low > high:
            raise SpecError(msg("--layers {text}: this model has blocks 0 to {last}.", text=text, last=count - 1))
        chosen |= set(range(low, high + 1))
    return chosen


@lru_cache(maxsize=1 << 15)
def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that orders numbers by value; a number of any length is (digits, text)."""
    parts = re.split(r"0*([0-9]+)", name)
    return tuple((len(part) if i % 2 else 1, part) for i, part in enumerate(parts))


def saved_inputs(targets: Iterable[Target]) -> int:
    """Numbers per token that backward needs of the inputs of trained layers: each distinct vector once, none that the base saves anyway.

    This count and the two below are for the torch backend; a test compares them with the tensors it saves.
    """
    widths: dict[str, int] = {}
    for target in targets:
        stem, _, last = target.module.removesuffix(".weight").rpartition(".")
        if last in _THERE:
            continue
        group = next((names[0] for names in _SHARED if last in names), last)
        widths[f"{stem}.{group}"] = target.in_features
    return sum(widths.values())


def saved_outputs(targets: Iterable[Target]) -> int:
    """Numbers per token that backward needs of these layers' outputs."""
    return sum(target.out_features for target in targets)


def saved_by_norms(targets: Iterable[Target]) -> int:
    """Numbers per token saved by trained norms: their normalised input."""
    return sum(t.out_features for t in targets if not t.in_features and is_norm(t.module.removesuffix(".weight")))
