"""The scalar head that reward models and critics train beside an adapter: value = w·h of a hidden state, without a bias.

It is one more tensor of the adapter, under a name that is no module of a base: it lies in the same file on disk, where PEFT ignores it.
"""

from __future__ import annotations

import math

from finetune_local.spec.batch import Floats
from finetune_local.spec.initial import normal

VALUE_HEAD = "value_head.weight"
"""The tensor's name, (1, hidden)."""


def initial_value_head(seed: int, hidden: int) -> Floats:
    """N(0, 1/(hidden + 1)), so that values begin near zero (Stiennon et al. 2020, arXiv:2009.01325, appendix B.1)."""
    return normal(seed, VALUE_HEAD, (1, hidden), 1.0 / math.sqrt(hidden + 1))
