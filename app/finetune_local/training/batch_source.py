"""Where the loop's batches come from. A source returns the same batches for the same step, so that a resumed run repeats them."""

from __future__ import annotations

from typing import Protocol

from finetune_local.data.dataset.batching import Examples, Indices, epoch_batches, micro_batches, steps_per_epoch
from finetune_local.spec.batch import Batch


class BatchSource(Protocol):
    """What a step learns from."""

    def batches(self, done: int, max_tokens: int) -> list[Batch]:
        """The micro-batches of the step after `done` steps, of at most `max_tokens` tokens each where no example is larger.

        They hold the same examples whatever `max_tokens` is.
        """
        ...


class EpochSource:
    """Examples epoch by epoch: each once, in an order that follows from the seed and the epoch alone."""

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
    """Examples in a given order, `batch_size` a step."""

    def __init__(self, examples: Examples, order: Indices, batch_size: int) -> None:
        self._examples, self._order, self._batch_size = examples, order, batch_size

    def batches(self, done: int, max_tokens: int) -> list[Batch]:
        """See BatchSource."""
        start = done * self._batch_size
        return micro_batches(self._examples, self._order[start : start + self._batch_size], max_tokens)
