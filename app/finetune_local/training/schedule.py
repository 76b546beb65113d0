"""The learning rate of each step."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """The rate of `step` (1 … steps): a linear rise over `warmup`·steps, then constant, linear or cosine fall to zero.

    The rise ends at the peak on its last step; the fall would reach zero one step after the last.
    """
    rise = math.ceil(warmup * steps)
    if step <= rise:
        return peak * step / rise
    if schedule == "constant":
        return peak
    progress = (step - rise - 1) / max(1, steps - rise)
    if schedule == "linear":
        return peak * (1.0 - progress)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
