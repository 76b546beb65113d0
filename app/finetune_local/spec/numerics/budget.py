"""AdaLoRA's rank budget: which triplets (column of B, value of E, row of A) are kept. Numpy, shared by both backends.

Zhang et al. 2023, arXiv:2303.10512, sections 3.2 (importance) and 3.3 (schedule), in PEFT's order: the optimizer step,
the importance from the new weights and that step's gradients, then the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import msg

Array = np.ndarray
Names = tuple[str, str, str]

STEP, IMPORTANCE, UNCERTAINTY, KEPT = "step", "importance:", "uncertainty:", "kept:"


@dataclass(frozen=True)
class Schedule:
    """The number of triplets over the steps: `first` for `tinit` steps, then a cubic down to `last` for the final `tfinal` of
    `steps`. In between the mask is recomputed every `every` steps.
    """

    first: int
    last: int
    steps: int
    tinit: int
    tfinal: int
    every: int

    @property
    def end(self) -> int:
        """The step after which the mask is final."""
        return self.steps - self.tfinal

    def at(self, step: int) -> int | None:
        """The budget applied after step `step` (from 1); None if the mask does not change."""
        if step == self.end:
            return self.last
        if step <= self.tinit or step > self.end or step % self.every:
            return None
        left = 1 - (step - self.tinit) / (self.end - self.tinit)
        return int((self.first - self.last) * left**3 + self.last)


class Budget:
    """See Tracker. `triplets` are the names of A (r, in), B (out, r) and E (r, 1) of each matrix."""

    def __init__(self, triplets: Mapping[str, Names], schedule: Schedule, beta1: float, beta2: float) -> None:
        self._triplets, self._schedule = dict(triplets), schedule
        self._beta1, self._beta2 = beta1, beta2
        self._step = 0
        self._importance: dict[str, Array] = {}
        self._uncertainty: dict[str, Array] = {}
        self._kept: dict[str, Array] = {}

    def update(self, tensors: Mapping[str, Array], gradients: Mapping[str, Array]) -> dict[str, Array]:
        """E with the triplets beyond the budget set to 0."""
        self._step += 1
        if self._step > self._schedule.end:  # the values that were cut stay so, whatever the optimizer's momentum says
            return self._masked(tensors)
        if self._step < self._schedule.end or not self._importance:
            self._measure(tensors, gradients)
        budget = self._schedule.at(self._step)
        if budget is None:
            return {}
        self._choose(budget)
        masked = self._masked(tensors)
        if self._step == self._schedule.end:
            self._importance, self._uncertainty = {}, {}
        else:
            self._kept = {}
        return masked

    def state(self) -> dict[str, Array]:
        """See Tracker."""
        return {
            STEP: np.array(self._step, np.int64),
            **{IMPORTANCE + name: value for name, value in self._importance.items()},
            **{UNCERTAINTY + name: value for name, value in self._uncertainty.items()},
            **{KEPT + name: value.astype(np.uint8) for name, value in self._kept.items()},
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """See Tracker. Raises AdapterError if the state is another adapter's."""
        if STEP not in state:
            raise AdapterError(
                msg("the saved state has no record of AdaLoRA's budget. It was saved with another method.")
            )

        def part(kind: str, dtype: type) -> dict[str, Array]:
            return {k.removeprefix(kind): np.array(v, dtype) for k, v in state.items() if k.startswith(kind)}

        kept = part(KEPT, np.bool_)
        if unknown := sorted(set(kept) - {e for _, _, e in self._triplets.values()}):
            raise AdapterError(
                msg("the saved AdaLoRA budget belongs to another adapter: it has {name}.", name=unknown[0])
            )
        self._step = int(state[STEP])
        self._importance, self._uncertainty = part(IMPORTANCE, np.float32), part(UNCERTAINTY, np.float32)
        self._kept = kept

    def _measure(self, tensors: Mapping[str, Array], gradients: Mapping[str, Array]) -> None:
        """Sensitivity |w·g| of every number, smoothed, and its uncertainty (equations 8 to 10)."""
        for names in self._triplets.values():
            for name in names:
                weight = tensors[name]
                now = np.abs(weight * gradients.get(name, np.zeros_like(weight)))
                before = self._importance.get(name, np.zeros_like(weight))
                mean = self._beta1 * before + (1 - self._beta1) * now
                spread = self._uncertainty.get(name, np.zeros_like(weight))
                self._importance[name] = mean
                self._uncertainty[name] = self._beta2 * spread + (1 - self._beta2) * np.abs(now - mean)

    def _choose(self, budget: int) -> None:
        """Keep the triplets with the highest scores: E's, plus the mean over A's row, plus the mean over B's column (equation 7).

        As in PEFT, every score up to the best one beyond the budget is dropped, so ties may leave fewer.
        """

        def score(name: str) -> Array:
            product: Array = self._importance[name] * self._uncertainty[name]
            return product

        scores = {e: score(e)[:, 0] + score(a).mean(1) + score(b).mean(0) for a, b, e in self._triplets.values()}
        over = self._schedule.first - budget
        limit = np.partition(np.concatenate(list(scores.values())), over - 1)[over - 1] if over > 0 else -np.inf
        self._kept = {e: found > limit for e, found in scores.items()}

    def _masked(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        return {
            e: np.where(kept[:, None], tensors[e], np.float32(0)) for e, kept in self._kept.items() if not kept.all()
        }
