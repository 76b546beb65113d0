"""Shifted sparse attention of LongLoRA (Chen et al. 2023, arXiv:2309.12307, section 3.2), for training on long rows.

A row is cut into groups of G positions and each position looks back within its own group only. For the second half of the
heads the cuts lie G/2 further on, so that what one half of the heads separates the other half joins:

    group of position i:  ⌊i / G⌋  or, for shifted heads,  ⌊(i + ⌈G/2⌉) / G⌋

The paper shifts by rolling the row, which puts its end and its beginning into one group; here these stay two groups, as in
the paper's published code for FlashAttention, so that no position sees a later one. Scores: L·G instead of L². Only training
computes so; answers and validation see everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

DEFAULT_GROUP = 2048
"""The paper's group for rows of 8192 tokens: for whoever trains without having looked at the rows."""


def automatic_group(longest: int) -> int:
    """A quarter of the longest row (section 3.2), an even number."""
    return max(2, 2 * math.ceil(longest / 8))


def runs(length: int, group: int, shifted: bool) -> list[tuple[int, int]]:
    """The stretches (start, end) of a row that are cut into groups of `group` from their own start on; the last may be shorter.

    For shifted heads the first G/2 positions are a group of their own.
    """
    half = group // 2
    if not shifted or length <= half:
        return [(0, length)]
    return [(0, half), (half, length)]


def plain_heads(heads: int) -> int:
    """How many heads, the first ones, have unshifted groups."""
    return heads // 2


def too_narrow(windows: Sequence[int | None], group: int) -> int | None:
    """The narrowest window of sliding-window layers that would cut a group, if any: groups within a window need no other mask."""
    return min((window for window in windows if window is not None and window < group), default=None)
