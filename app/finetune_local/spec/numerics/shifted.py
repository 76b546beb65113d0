"""LongLoRA's shifted sparse attention (Chen et al. 2023, arXiv:2309.12307, section 3.2), for training on long rows.

A row is split into groups of G positions, and a position attends within its group only. For the second half of the heads the
groups are shifted by G/2, so that information flows across the boundaries:

    group of position i:  ⌊i / G⌋  or, for shifted heads,  ⌊(i + ⌈G/2⌉) / G⌋

The paper rolls the row, which joins its end and its beginning in one group; here they stay separate, as in the paper's
FlashAttention code, so attention remains causal. L·G scores instead of L². Used in training only; inference and validation
use full attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import tuner_of
from finetune_local.system.errors import Unsupported
from finetune_local.system.messages import msg

DEFAULT_GROUP = 2048
"""The paper's group for rows of 8192 tokens, used if the rows' lengths are unknown."""


def automatic_group(longest: int) -> int:
    """A quarter of the longest row (section 3.2), rounded to an even number."""
    return max(2, 2 * math.ceil(longest / 8))


def runs(length: int, group: int, shifted: bool) -> list[tuple[int, int]]:
    """The stretches (start, end) of a row that are split into groups of `group` from their own start; the last may be shorter.

    For shifted heads the first G/2 positions form a stretch.
    """
    half = group // 2
    if not shifted or length <= half:
        return [(0, length)]
    return [(0, half), (half, length)]


def plain_heads(heads: int) -> int:
    """Number of heads, the first ones, with unshifted groups."""
    return heads // 2


def group_of(training: TrainingSettings) -> int:
    """Positions per group; 0 for full attention."""
    return (training.attention_group or DEFAULT_GROUP) if training.attention == "shifted" else 0


def check_shifted(plan: AdapterPlan, training: TrainingSettings, windows: Sequence[int | None]) -> None:
    """Raise Unsupported if an adapter or a base (`windows` of its layers) cannot be trained this way."""
    group = group_of(training)
    if group and tuner_of(plan).virtual_tokens(plan):
        raise Unsupported(
            msg(
                "--attention shifted: method '{method}' puts virtual tokens before every text, which only the first "
                "group would see. Use --attention full, or --method longlora.",
                method=plan.method,
            )
        )
    window = min((width for width in windows if width is not None), default=group)
    if window < group:  # within a window a group needs no other mask
        raise Unsupported(
            msg(
                "--attention shifted: layers of this model look back only {window} positions, less than a group of "
                "{group}. Set --attention-group to {window} or less, or use --attention full.",
                window=window,
                group=group,
            )
        )


def one_group(trainings: Sequence[TrainingSettings]) -> int:
    """The common group of adapters that share a forward pass. Raises Unsupported if they differ."""
    groups = {group_of(training) for training in trainings}
    if len(groups) > 1:
        raise Unsupported(
            msg(
                "adapters that are trained at once need the same --attention and --attention-group, because they "
                "share each pass of the base. Train them one after another, or with the same settings."
            )
        )
    return groups.pop()
