"""How many numbers the way back needs of each token because of an adapter, beside what it needs of the base alone.

Counted on the torch backend, whose kernels keep no more than these (its saved tensors are what a test compares with).
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune_local.spec.plan import Target
from finetune_local.spec.targets import is_norm

_SHARED = (("q_proj", "k_proj", "v_proj", "qkv_proj"), ("gate_proj", "up_proj", "gate_up_proj", "fc1"))
"""Layers of a block that read the same vector."""
_THERE = ("o_proj", "out_proj")
"""Layers that read what attention gives, which attention itself keeps."""


def inputs(targets: Iterable[Target]) -> int:
    """Numbers per token that layers whose A or W is trained are given: each distinct vector once, and none that is kept anyway."""
    widths: dict[str, int] = {}
    for target in targets:
        stem, _, last = target.module.removesuffix(".weight").rpartition(".")
        if last in _THERE:
            continue
        group = next((names[0] for names in _SHARED if last in names), last)
        widths[f"{stem}.{group}"] = target.in_features
    return sum(widths.values())


def outputs(targets: Iterable[Target]) -> int:
    """Numbers per token that these layers give."""
    return sum(target.out_features for target in targets)


def normed(targets: Iterable[Target]) -> int:
    """Numbers per token that norms whose weight is trained keep: their input divided by its size."""
    return sum(t.out_features for t in targets if not t.in_features and is_norm(t.module.removesuffix(".weight")))
