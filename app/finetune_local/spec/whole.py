"""Whole copies of the base's embedding, head and norms beside a low-rank update: LongLoRA's (arXiv:2309.12307, section 3.3), and
those that other trainers save, whose tables may have more rows than the base's, or fewer: a vocabulary that grew.

A copy is a target of its own whose module is the weight's whole name, such as model.norm.weight. On disk it has that name, as
PEFT's `modules_to_save` have. A copied embedding serves tokens that are read; a head tied to it stays the base's, as in PEFT.
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
"""What can be trained so here. Copies of the head are read too, where others have trained them."""

TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
"""End of PEFT's name of single rows of an embedding or head that were trained; adapters/token_tables.py puts them into its table."""

NOT_TRAINED = (".base_layer.weight", ".original_module.weight", ".modules_to_save.weight")
"""Ends of the names of what PEFT saves beside an adapter: the base's own tables, and a second copy of a trained one."""


def is_whole(target: Target) -> bool:
    """Whether a target is a whole copy."""
    return target.module.endswith(WEIGHT)


def is_table(target: Target) -> bool:
    """Whether a target is a whole copy of an embedding or a head: a row for each token."""
    return is_whole(target) and kind_of(target.module) in ("embeddings", "heads")


def is_token_rows(target: Target) -> bool:
    """Whether a target is some rows of a table."""
    return target.module.endswith(TOKEN_ROWS)


def read_token_rows(named: bool, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Target, ...]:
    """The rows of tables among an adapter's tensors; `named` is whether its config says that there are some. Raises AdapterError."""
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
    """(rows, width) of an embedding, (width,) of a norm."""
    return (target.out_features, target.in_features) if target.in_features else (target.out_features,)


def whole_targets(kinds: Collection[str], base: BaseInfo, adapted: Collection[str]) -> tuple[Target, ...]:
    """What is copied, biases of norms too; `adapted` are modules that have an update. Raises SpecError."""
    found: list[Target] = []
    for kind in dict.fromkeys(kinds):
        names = [name for name in sorted(base.weights) if kind_of(name) == kind]
        if not names:
            raise SpecError(
                msg("--also-train {kind}: this model has no {kind} of a known name. Leave it out.", kind=kind)
            )
        if both := [name for name in names if name.removesuffix(WEIGHT) in adapted]:
            raise SpecError(
                msg(
                    "--also-train {kind}: {both} is copied and trained whole, so an update beside it adds nothing. Leave "
                    "out --also-train, or the --target.",
                    kind=kind,
                    both=both[0],
                )
            )
        for name in names:
            shape = base.weights[name].shape
            found.append(Target(name, shape[1] if len(shape) > 1 else 0, shape[0]))
    return tuple(found)


def kind_of(name: str) -> str | None:
    """Of which of KINDS a weight of the base is, or "heads", if of any. A norm's bias goes with its weight."""
    module = name.removesuffix(WEIGHT).removesuffix(BIAS)
    if is_embedding(module) and name.endswith(WEIGHT):
        return "embeddings"
    if is_head(module) and name.endswith(WEIGHT):
        return "heads"
    return "norms" if module != name and is_norm(module) else None


def read_whole(saved: Collection[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Target, ...]:
    """The copies among an adapter's tensors. Raises AdapterError where PEFT's `modules_to_save` name others."""
    names = [name.removeprefix(PREFIX) for name in sorted(shapes) if ".lora_" not in name and name.endswith(WEIGHT)]
    for name in [*names, *(f"{module}{WEIGHT}" for module in saved)]:
        if kind_of(name) is None:
            raise AdapterError(
                msg(
                    "adapter_config.json has a whole copy of {module} ('modules_to_save'), and this version reads those "
                    "of embeddings, heads and norms only. Merge the adapter with PEFT, or train it again without.",
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
    """Which of KINDS there are copies of."""
    there = {kind_of(target.module) for target in targets if is_whole(target)}
    return tuple(kind for kind in KINDS if kind in there)
