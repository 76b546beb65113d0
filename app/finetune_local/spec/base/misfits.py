"""Sentences about weights that do not fit a model's class, or that contain NaN or infinity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from finetune_local.spec.base.sizes import AGAIN
from finetune_local.spec.base.weights import OTHER_PARTS, TIE, ends_with, is_buffer, short
from finetune_local.spec.targets import HEADS
from finetune_local.system.messages import Message, msg


def explain(
    where: Path | str,
    family: str,
    missing: Collection[str],
    unexpected: Collection[str],
    misshapen: Collection[str] = (),
) -> Message | None:
    """The sentence about tensors that this family of models requires but lacks, and about unknown ones; None if there are none."""
    strange = sorted(n for n in unexpected if not is_buffer(n) and not OTHER_PARTS.search(n))
    lacking = sorted(missing)
    if lacking and strange and (names := _renamed(lacking, strange)):
        theirs, ours = names
        return msg(
            "{where}: its tensors are named {theirs}…, but a {family} model's are named {ours}…: they belong to "
            "a model with several parts, or were saved by another program. Save the language model itself with "
            "save_pretrained().",
            where=where,
            theirs=theirs,
            family=family,
            ours=ours,
        )
    if misshapen:
        return msg(
            "{where}: {number} weights have another shape than config.json declares; the first is {name}. {again}",
            where=where,
            number=len(misshapen),
            name=short(min(misshapen)),
            again=AGAIN,
        )
    if lacking and all(ends_with(name, HEADS) for name in lacking):
        return msg(
            "{where}: the weights have no head ({name}), and config.json does not tie it to the embedding: it "
            "would be filled with random numbers. {again} {tie}",
            where=where,
            name=lacking[0],
            again=AGAIN,
            tie=TIE,
        )
    if lacking:
        return msg(
            "{where}: {number} weights are missing or have the wrong shape; the first is {name}: they would be "
            "filled with random numbers. {again}",
            where=where,
            number=len(lacking),
            name=short(lacking[0]),
            again=AGAIN,
        )
    if strange:
        return msg(
            "{where}: {number} of its tensors do not belong to a {family} model and would be ignored; the first "
            "is {name}. {again}",
            where=where,
            number=len(strange),
            family=family,
            name=short(strange[0]),
            again=AGAIN,
        )
    return None


def not_finite(where: Path | str, name: str, count: int) -> Message:
    """The sentence about a weight that contains NaN or infinity."""
    return msg(
        "{where}: {name} has {number} NaN or infinite values, so it cannot be used. The file is damaged, or "
        "the training it comes from failed: copy or download it again, or use an earlier version.",
        where=where,
        number=count,
        name=short(name),
    )


def _renamed(missing: list[str], unexpected: list[str]) -> tuple[str, str] | None:
    """The prefixes by which most names of both differ: ("model.language_model.", "model.")."""
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
