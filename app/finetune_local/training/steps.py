"""Optimizer steps over the batches of a source. The loop and the calibration run both train by these.

A step is asked for and its result waited for, so that several loops can be served by one pass of the base (multi_adapter.py).
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from finetune_local.backend import Session, StepRequest, StepResult
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import Objective
from finetune_local.spec.run import TrainingSettings
from finetune_local.system.errors import OutOfMemory
from finetune_local.training import notes
from finetune_local.training.batch_source import BatchSource
from finetune_local.training.checkpoints.checkpoint import LoopState
from finetune_local.training.events import Event, Note
from finetune_local.training.schedule import learning_rate


@dataclass(frozen=True)
class PendingStep:
    """A step that is asked for, and the seed of its random numbers."""

    request: StepRequest
    seed: int


Pending = Generator[Event | PendingStep, StepResult | None, None]
"""Training in progress: yields events, and pending steps, for each of which a StepResult is sent or OutOfMemory thrown."""


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its result, learning rate, tokens (all and supervised) and duration."""

    result: StepResult
    learning_rate: float
    tokens: int
    supervised: int
    seconds: float


class Stepper:
    """Takes the steps of one adapter."""

    def __init__(
        self,
        adapter: str,
        source: BatchSource,
        objective: Objective,
        training: TrainingSettings,
        state: LoopState,
        ensemble_size: int = 1,
    ) -> None:
        """`state.micro_batch_tokens` is halved where memory is short. Every row is computed `ensemble_size` times."""
        self._adapter, self._source, self._objective = adapter, source, objective
        self._training, self._state, self._ensemble_size = training, state, ensemble_size
        self.steps = training.max_steps or 1

    @property
    def max_tokens(self) -> int:
        """Tokens of rows that may be computed at once."""
        return max(1, self._state.micro_batch_tokens // self._ensemble_size)

    def step(self, done: int, seed: int) -> Generator[Event | PendingStep, StepResult | None, Taken]:
        """The step after `done` steps. Raises OutOfMemory where not even one example fits."""
        training = self._training
        rate = learning_rate(done + 1, self.steps, training.learning_rate or 0.0, training.warmup, training.schedule)
        began = time.perf_counter()
        while True:
            batches = self._source.batches(done, self.max_tokens)
            request = StepRequest(self._adapter, batches, self._objective, rate)
            try:
                result = yield PendingStep(request, seed)
                assert result is not None, "a pending step is sent its result"
                break
            except OutOfMemory as error:
                # The session has undone the step. Smaller pieces give the same sum, so the result does not change.
                if max(batch.examples for batch in batches) == 1:
                    raise notes.no_row_fits(max(int(b.lengths.max()) for b in batches), error) from error
                yield self.halve(batches)
        tokens, supervised = sum(b.tokens for b in batches), sum(b.supervised for b in batches)
        return Taken(result, rate, tokens, supervised, time.perf_counter() - began)

    def halve(self, batches: Sequence[Batch]) -> Note:
        """Less at once than the largest of these: half of a budget that no batch reached would change nothing."""
        largest = max(batch.ids.size for batch in batches) * self._ensemble_size
        self._state.micro_batch_tokens = max(1, min(self._state.micro_batch_tokens, largest) // 2)
        return Note(text=notes.smaller_batches(self._state.micro_batch_tokens, self._training.batch_size or 1))


def take_alone(session: Session, pending: PendingStep) -> StepResult | OutOfMemory:
    """One pending step, in a pass by itself."""
    session.seed(pending.seed)
    try:
        return session.step_many([pending.request])[0]
    except OutOfMemory as error:
        return error
