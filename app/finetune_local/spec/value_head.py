"""The scalar head that reward models and critics train beside an adapter: value = w·h of a hidden state, without a bias.

It is an additional tensor of the adapter, named unlike any module of a base, and saved in the same file, where PEFT ignores it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from finetune_local.spec.batch import Floats
from finetune_local.spec.initial import normal
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import Array, tuner_of

VALUE_HEAD = "value_head.weight"
"""The tensor's name, (1, hidden)."""


def initial_value_head(seed: int, hidden: int) -> Floats:
    """N(0, 1/(hidden + 1)), so that values start near zero (Stiennon et al. 2020, arXiv:2009.01325, appendix B.1)."""
    return normal(seed, VALUE_HEAD, (1, hidden), 1.0 / math.sqrt(hidden + 1))


def folded(plan: AdapterPlan, tensors: Mapping[str, Array]) -> tuple[AdapterPlan, dict[str, Array]]:
    """Tuner.fold with the value head, if there is one, unchanged."""
    own = {name: array for name, array in tensors.items() if name != VALUE_HEAD}
    new_plan, new = tuner_of(plan).fold(plan, own)
    return new_plan, new | {name: tensors[name] for name in tensors.keys() - own.keys()}
