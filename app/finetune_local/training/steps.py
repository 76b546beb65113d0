"""Optimizer steps and the sources of their batches, for the loop and for calibration runs.

A stepper yields a pending step and resumes with its result, so that one pass of the base can serve several loops (multi_adapter.py).
A source returns the same batches for the same step, so that a resumed run repeats them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_local.backend import Session, StepRequest, StepResult
from finetune_local.data.dataset.batching import Examples, Indices, epoch_batches, micro_batches, steps_per_epoch
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import Objective
from finetune_local.spec.run import TrainingSettings
from finetune_local.system.errors import OutOfMemory
from finetune_local.training import notes
from finetune_local.training.checkpoints.checkpoint import LoopState
from finetune_local.training.events import Event, Note


class BatchSource(Protocol):
    """Supplies the micro-batches of each optimizer step."""

    def batches(self, done: int, max_tokens: int) -> list[Batch]:
        """The micro-batches of step `done` + 1, each of at most `max_tokens` tokens; a larger example is a batch by itself.

        `max_tokens` changes how the examples are split, not which examples the step contains.
        """
        ...


class EpochSource:
    """All examples once per epoch, in an order that depends only on the seed and the epoch."""

    def __init__(self, examples: Examples, batch_size: int, seed: int) -> None:
        self._examples, self._batch_size, self._seed = examples, batch_size, seed
        self.steps_per_epoch = steps_per_epoch(len(examples.lengths), batch_size)
        self._epoch: tuple[int, list[Indices]] = (-1, [])

    def batches(self, done: int, max_tokens: int) -> list[Batch]:
        """See BatchSource."""
        epoch, position = divmod(done, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, epoch_batches(self._examples.lengths, self._batch_size, self._seed, epoch))
        return micro_batches(self._examples, self._epoch[1][position], max_tokens)


class ListSource:
    """Examples in a given order, `batch_size` per step."""

    def __init__(self, examples: Examples, order: Indices, batch_size: int) -> None:
        self._examples, self._order, self._batch_size = examples, order, batch_size

    def batches(self, done: int, max_tokens: int) -> list[Batch]:
        """See BatchSource."""
        start = done * self._batch_size
        return micro_batches(self._examples, self._order[start : start + self._batch_size], max_tokens)


def learning_rate(step: int, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """The learning rate at `step` (1 … steps): linear warm-up over `warmup`·steps, then constant, or linear or cosine decay.

    The last warm-up step is at the peak; decay would reach zero one step after the last.
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


@dataclass(frozen=True)
class PendingStep:
    """A requested step and the seed of its random numbers."""

    request: StepRequest
    seed: int


Pending = Generator[Event | PendingStep, StepResult | None, None]
"""Training in progress: yields events and pending steps. Each pending step receives a StepResult by send() or OutOfMemory by throw()."""


@dataclass(frozen=True)
class Taken:
    """A completed step: its result, learning rate, number of tokens (all and supervised) and seconds."""

    result: StepResult
    learning_rate: float
    tokens: int
    supervised: int
    seconds: float


class Stepper:
    """Takes the optimizer steps of one adapter."""

    def __init__(
        self,
        adapter: str,
        source: BatchSource,
        objective: Objective,
        training: TrainingSettings,
        state: LoopState,
        ensemble_size: int = 1,
    ) -> None:
        """`state.micro_batch_tokens` is halved when memory runs out. Every row is computed `ensemble_size` times."""
        self._adapter, self._source, self._objective = adapter, source, objective
        self._training, self._state, self._ensemble_size = training, state, ensemble_size
        self.steps = training.max_steps or 1

    @property
    def max_tokens(self) -> int:
        """The most tokens of a micro-batch, before rows are repeated for the ensemble."""
        return max(1, self._state.micro_batch_tokens // self._ensemble_size)

    def step(self, done: int, seed: int) -> Generator[Event | PendingStep, StepResult | None, Taken]:
        """Take step `done` + 1. Raises OutOfMemory if not even one example fits."""
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
                # The session has undone the step. Smaller micro-batches sum to the same gradient.
                if max(batch.examples for batch in batches) == 1:
                    raise notes.no_row_fits(max(int(b.lengths.max()) for b in batches), error) from error
                yield self.halve(batches)
        tokens, supervised = sum(b.tokens for b in batches), sum(b.supervised for b in batches)
        return Taken(result, rate, tokens, supervised, time.perf_counter() - began)

    def halve(self, batches: Sequence[Batch]) -> Note:
        """Lower the micro-batch size below the largest of `batches`: half of a budget that no batch reached would change nothing."""
        largest = max(batch.ids.size for batch in batches) * self._ensemble_size
        self._state.micro_batch_tokens = max(1, min(self._state.micro_batch_tokens, largest) // 2)
        return Note(text=notes.smaller_batches(self._state.micro_batch_tokens, self._training.batch_size or 1))


def take_alone(session: Session, pending: PendingStep) -> StepResult | OutOfMemory:
    """Take one pending step in its own forward and backward pass."""
    session.seed(pending.seed)
    try:
        return session.step_many([pending.request])[0]
    except OutOfMemory as error:
        return error
