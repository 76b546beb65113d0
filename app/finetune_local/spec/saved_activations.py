"""Numbers per token saved for backward because of an adapter, beyond what the base alone saves.

Counted for the torch backend; a test compares them with its saved tensors.
"""

from __future__ import annotations

from collections.abc import Iterable

from finetune_local.spec.plan import Target
from finetune_local.spec.targets import is_norm

_SHARED = (("q_proj", "k_proj", "v_proj", "qkv_proj"), ("gate_proj", "up_proj", "gate_up_proj", "fc1"))
"""Layers of a block that read the same vector."""
_THERE = ("o_proj", "out_proj")
"""Layers that read attention's output, which attention saves itself."""


def inputs(targets: Iterable[Target]) -> int:
    """Numbers per token of the inputs saved for trained layers: each distinct vector once, none that is saved anyway."""
    widths: dict[str, int] = {}
    for target in targets:
        stem, _, last = target.module.removesuffix(".weight").rpartition(".")
        if last in _THERE:
            continue
        group = next((names[0] for names in _SHARED if last in names), last)
        widths[f"{stem}.{group}"] = target.in_features
    return sum(widths.values())


def outputs(targets: Iterable[Target]) -> int:
    """Numbers per token of these layers' outputs."""
    return sum(target.out_features for target in targets)


def normed(targets: Iterable[Target]) -> int:
    """Numbers per token saved by trained norms: their normalised input."""
    return sum(t.out_features for t in targets if not t.in_features and is_norm(t.module.removesuffix(".weight")))
