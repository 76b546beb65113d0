"""Full copies of the base's embedding, head and norms beside a low-rank update.

LongLoRA trains them (arXiv:2309.12307, section 3.3). Other trainers save them in adapters too, also with more or fewer rows
than the base's table if the vocabulary changed.

A copy is a target whose module is the weight's full name, such as model.norm.weight; on disk it has the name that PEFT's
`modules_to_save` uses. A copied embedding is used for input tokens; a tied head keeps the base's weight, as in PEFT.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from finetune_local.spec.plan import BaseInfo, Target
from finetune_local.spec.targets import is_embedding, is_head, is_norm
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import AdapterError, SpecError
from finetune_local.system.messages import msg

WEIGHT, BIAS = ".weight", ".bias"
KINDS = ("embeddings", "norms")
"""The kinds that can be trained. Copies of the head are read but not trained."""

TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
"""Suffix of PEFT's name for individually trained rows of a token table; adapters/token_tables.py inserts them."""

NOT_TRAINED = (".base_layer.weight", ".original_module.weight", ".modules_to_save.weight")
"""Suffixes of tensors PEFT saves without having trained them: the base's own tables and duplicates."""


def is_full_copy(target: Target) -> bool:
    """Whether a target is a full copy."""
    return target.module.endswith(WEIGHT)


def is_table(target: Target) -> bool:
    """Whether a target is a full copy of an embedding or a head, with one row per token."""
    return is_full_copy(target) and kind_of(target.module) in ("embeddings", "heads")


def is_token_rows(target: Target) -> bool:
    """Whether a target is individual rows of a token table."""
    return target.module.endswith(TOKEN_ROWS)


def read_token_rows(named: bool, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Target, ...]:
    """Individually trained table rows in an adapter; `named` says whether its config declares any. Raises AdapterError."""
    names = [name for name in sorted(shapes) if name.endswith(TOKEN_ROWS) and len(shapes[name]) == 2]
    if named and not names:
        raise AdapterError(
            msg(
                "adapter_config.json names 'trainable_token_indices', but their rows are not in the file: it is "
                "incomplete."
            )
        )
    return tuple(Target(name.removeprefix(PREFIX), shapes[name][1], shapes[name][0]) for name in names)


def module_of(target: Target) -> str:
    """The module whose weight is copied."""
    return target.module.removesuffix(WEIGHT)


def shape_of(target: Target) -> tuple[int, ...]:
    """(rows, width) for a table, (width,) for a norm."""
    return (target.out_features, target.in_features) if target.in_features else (target.out_features,)


def full_copy_targets(kinds: Collection[str], base: BaseInfo, adapted: Collection[str]) -> tuple[Target, ...]:
    """The weights to copy, biases of norms included; `adapted` are modules with an update. Raises SpecError."""
    found: list[Target] = []
    for kind in dict.fromkeys(kinds):
        names = [name for name in sorted(base.weights) if kind_of(name) == kind]
        if not names:
            raise SpecError(
                msg("--also-train {kind}: this model has no {kind} with a known name. Remove it.", kind=kind)
            )
        if both := [name for name in names if name.removesuffix(WEIGHT) in adapted]:
            raise SpecError(
                msg(
                    "--also-train {kind}: {both} is copied and trained in full, so an update beside it adds nothing. "
                    "Remove --also-train or the --target.",
                    kind=kind,
                    both=both[0],
                )
            )
        for name in names:
            shape = base.weights[name].shape
            found.append(Target(name, shape[1] if len(shape) > 1 else 0, shape[0]))
    return tuple(found)


def kind_of(name: str) -> str | None:
    """The kind of a base weight: one of KINDS, "heads", or None. A norm's bias belongs to its weight."""
    module = name.removesuffix(WEIGHT).removesuffix(BIAS)
    if is_embedding(module) and name.endswith(WEIGHT):
        return "embeddings"
    if is_head(module) and name.endswith(WEIGHT):
        return "heads"
    return "norms" if module != name and is_norm(module) else None


def read_full_copies(saved: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Target, ...]:
    """The full copies in an adapter. Raises AdapterError if `modules_to_save` names other modules."""
    names = [name.removeprefix(PREFIX) for name in sorted(shapes) if ".lora_" not in name and name.endswith(WEIGHT)]
    for name in [*names, *(f"{module}{WEIGHT}" for module in saved)]:
        if kind_of(name) is None:
            raise AdapterError(
                msg(
                    "adapter_config.json has a full copy of {module} ('modules_to_save'), but this version reads only "
                    "those of embeddings, heads and norms. Merge the adapter with PEFT, or train it again without it.",
                    module=name.removesuffix(WEIGHT),
                )
            )
    if len(saved) and not names:
        raise AdapterError(
            msg("adapter_config.json names 'modules_to_save', but they are not in the file: it is incomplete.")
        )
    return tuple(
        Target(name, shape[1] if len(shape) > 1 else 0, shape[0]) for name in names if (shape := shapes[PREFIX + name])
    )


def kinds_in(targets: Collection[Target]) -> tuple[Any, ...]:
    """The kinds that are copied."""
    there = {kind_of(target.module) for target in targets if is_full_copy(target)}
    return tuple(kind for kind in KINDS if kind in there)
