"""THE loop: a generator of events, for every method, objective and backend.

It decides what is computed next and what is saved; the session computes. Nothing here knows a console, a process or a framework.
Where it wants a step it says so and waits for the result, so that several loops can be served by one pass (together.py).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.adapters.identity import VOCABULARY, write_identity
from finetune_local.backend import StepRequest, StepResult
from finetune_local.data.conversation import RowRejected
from finetune_local.data.dataset.batching import batches_for_scoring, epoch_batches, micro_batches, steps_per_epoch
from finetune_local.data.encoding.encode import prompt_ids
from finetune_local.spec.batch import Batch
from finetune_local.spec.tuners import trainable_parameters, tuner_of
from finetune_local.system.errors import DamagedRun, OutOfMemory
from finetune_local.system.messages import Message, msg
from finetune_local.training import checkpoint, notes
from finetune_local.training.events import (
    Checkpoint,
    Event,
    Finished,
    Note,
    Sample,
    Started,
    Step,
    StoppedByUser,
    Validation,
)
from finetune_local.training.publish import publish, publish_checkpoint
from finetune_local.training.schedule import learning_rate
from finetune_local.training.setup import Ready

EXPLODED = 3.0
"""Nats above the first loss that no recovery follows from: twenty times the perplexity."""


@dataclass(frozen=True)
class PendingStep:
    """A step that a loop asks for, and the seed of its random numbers."""

    request: StepRequest
    seed: int


Work = Generator[Event | PendingStep, StepResult | None, None]
"""A loop at work: gives events, and steps it wants, for each of which a StepResult is sent or OutOfMemory thrown."""


class Loop:
    """One training from where its state stands to its end; together.py runs it, alone or beside others."""

    def __init__(self, ready: Ready, stop: Callable[[], bool], finish: Callable[[], bool] = lambda: False) -> None:
        """After every step `stop()` says whether to stop, to resume later, and `finish()` whether this was the last step."""
        self.ready, self.stop, self.finish = ready, stop, finish
        self.training = ready.spec.training
        self.state = ready.state
        self.steps = self.training.max_steps or 1
        self.batch_size = self.training.batch_size or 1
        self.per_epoch = steps_per_epoch(len(ready.data.train), self.batch_size)
        self.objective = ready.spec.objective.objective
        self._epoch: tuple[int, list[Any]] = (-1, [])
        self._rate = 0.0
        self._saved = self.state.step
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def work(self) -> Work:
        """Train; the last event is Finished or StoppedByUser. Raises TrainingDiverged, OutOfMemory, DiskFull."""
        ready, state = self.ready, self.state
        yield Started(
            step=state.step,
            steps=self.steps,
            backend=ready.backend,
            device=ready.session.device.id,
            precision=ready.session.precision,
            trainable_parameters=trainable_parameters(ready.plan),
            total_parameters=ready.model.parameters,
            rows=len(ready.data.train),
            validation_rows=len(ready.data.validation),
        )
        self._prune()  # one that was killed may have left it undone
        reason, stopped = self._end(), self.stop()  # who stopped during the preparation need not wait for a step
        if state.step == 0 and not stopped:
            # A run that is killed before its first checkpoint begins anew; the base's loss is the mark to beat.
            yield from self._validate()
        if stopped and not reason:
            if state.step:
                self._publish()
            yield StoppedByUser(step=state.step, summary=self.summary())
            return
        while not reason:
            yield from self._step()
            best = False
            if state.step >= self.steps or state.step % (self.training.validate_every or self.steps) == 0:
                best = yield from self._validate()
            reason = self._end()
            stopped = not reason and self.stop()
            # The best is saved so that it can be kept. A step is saved after all was told of it: killed between, it is done again.
            due = state.step % (self.training.checkpoint_every or self.steps) == 0
            if self._saved != state.step and (best or reason or stopped or due):
                yield self._save()
            if stopped:
                self._publish()
                yield StoppedByUser(step=state.step, summary=self.summary())
                return
        yield from self._finish(reason)

    def _end(self) -> str:
        """Why the run is at its end, or the empty string. But for the user's wish it follows from the state alone, so a resumed
        run knows it too."""
        if self.state.step >= self.steps:
            return msg("all steps done")
        if self.training.early_stopping and self.state.worse_validations >= self.training.early_stopping:
            return msg("no better validation loss in {number} validations", number=self.state.worse_validations)
        if self.state.step and self.finish():
            return msg("ended where you asked")
        return ""

    def _step(self) -> Work:
        ready, state = self.ready, self.state
        rows = self._rows(state.step)
        rate = learning_rate(
            state.step + 1, self.steps, self.training.learning_rate or 0.0, self.training.warmup, self.training.schedule
        )
        began = time.perf_counter()
        while True:
            batches = micro_batches(ready.data.train, rows, self._budget)
            request = StepRequest(ready.adapter, batches, self.objective, rate)
            try:
                result = yield PendingStep(request, _seed_of(self.training.seed, state.step))
                assert result is not None, "a loop that wants a step is sent its result"
                break
            except OutOfMemory as error:
                # The session has undone the step. Smaller pieces give the same sum, so the result does not change.
                if max(len(batch.ids) for batch in batches) == 1:
                    raise notes.no_row_fits(max(int(b.lengths.max()) for b in batches), error) from error
                yield self._halve(batches)
        self._guard(result.loss, result.gradient_norm)
        tokens, supervised = sum(b.tokens for b in batches), sum(b.supervised for b in batches)
        seconds = time.perf_counter() - began
        state.step += 1
        state.trained_tokens += tokens
        state.supervised_tokens += supervised
        state.first_loss = result.loss if state.first_loss is None else state.first_loss
        state.last_loss = result.loss
        self._count()
        self._rate = seconds if not self._rate else 0.9 * self._rate + 0.1 * seconds
        yield Step(
            step=state.step,
            steps=self.steps,
            loss=result.loss,
            learning_rate=rate,
            gradient_norm=result.gradient_norm,
            tokens=tokens,
            supervised_tokens=supervised,
            tokens_per_second=tokens / seconds,
            seconds_left=self._rate * (self.steps - state.step),
            peak_memory_bytes=state.peak_memory_bytes,
        )

    @property
    def _ensemble_size(self) -> int:
        """How often each row is read: once for every prompt of an ensemble."""
        return tuner_of(self.ready.plan).virtual_ids(self.ready.plan).ensemble_size

    @property
    def _budget(self) -> int:
        """Tokens of rows that may be computed at once."""
        return max(1, self.state.micro_batch_tokens // self._ensemble_size)

    def _halve(self, batches: Sequence[Batch]) -> Note:
        """Less at once than the largest of these: half of a budget that no batch reached would change nothing."""
        largest = max(batch.ids.size for batch in batches) * self._ensemble_size
        self.state.micro_batch_tokens = max(1, min(self.state.micro_batch_tokens, largest) // 2)
        return Note(text=notes.smaller_batches(self.state.micro_batch_tokens, self.batch_size))

    def _rows(self, done: int) -> Any:
        """Rows of the step after `done` steps: they follow from the seed and the step alone."""
        epoch, position = divmod(done, self.per_epoch)
        if self._epoch[0] != epoch:
            batches = epoch_batches(self.ready.data.train.lengths, self.batch_size, self.training.seed, epoch)
            self._epoch = (epoch, batches)
        return self._epoch[1][position]

    def _guard(self, loss: float, norm: float) -> None:
        """Stop on a loss that is no number, or ten losses far above the first. Raises TrainingDiverged."""
        state = self.state
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise notes.not_finite(state.step + 1, loss, norm, self._advice())
        state.recent_losses = [*state.recent_losses, loss][-notes.RECENT :]
        if (
            len(state.recent_losses) == notes.RECENT
            and np.mean(state.recent_losses) > (state.first_loss or loss) + EXPLODED
        ):
            raise notes.risen(
                state.step + 1, state.first_loss or loss, float(np.mean(state.recent_losses)), self._advice()
            )

    def _advice(self) -> Message:
        return notes.gentler(checkpoint.latest(self.ready.run.checkpoints), self.training.learning_rate or 0.0)

    def _validate(self) -> Generator[Event, None, bool]:
        """Score the held-out rows and answer some of them; returns whether the loss was never lower after a step."""
        ready, state = self.ready, self.state
        ready.session.activate(ready.adapter)  # beside others it need not be the one that computed last
        best = False
        if len(ready.data.validation):
            loss = yield from self._validation_loss()
            if not math.isfinite(loss):
                raise notes.validation_not_finite(state.step, loss, self._advice())
            state.validation_loss = loss
            best = state.best_loss is None or state.validation_loss < state.best_loss
            state.worse_validations = 0 if best else state.worse_validations + 1
            if best:
                state.best_loss, state.best_step = state.validation_loss, state.step
            yield Validation(step=state.step, loss=state.validation_loss, best=best)
        yield from self._samples()
        self._count()
        return best

    def _validation_loss(self) -> Generator[Event, None, float]:
        ready = self.ready
        # The same rows every time, but from all over: a file may be sorted by topic.
        held_out = len(ready.data.validation)
        shuffled = np.random.default_rng(self.training.seed).permutation(held_out)
        rows = np.sort(shuffled[: self.training.validation_rows])
        while True:
            loss_sum, count, batch = 0.0, 0, None
            try:
                for _, batch in batches_for_scoring(ready.data.validation, rows, self._budget):
                    scores = ready.session.score(batch)
                    loss_sum -= float(scores.sum(dtype=np.float64))
                    count += len(scores)
                return loss_sum / count
            except OutOfMemory:
                if batch is None or len(batch.ids) == 1:
                    raise
                yield self._halve([batch])

    def _samples(self) -> Iterator[Event]:
        """Answers to look at. A prompt that cannot be asked alone is passed over: it is no reason to end a training."""
        from finetune_local.inference.generate import greedy_batch

        ready = self.ready
        asked, prompts = [], []
        for conversation in ready.samples:
            if len(conversation.messages) < 2 or conversation.messages[-1].role != "assistant":
                continue
            with suppress(RowRejected):  # some templates refuse a beginning that they accept within the whole
                ids = prompt_ids(conversation.messages[:-1], ready.tokenizer, ready.spec.data.template)
                if 0 < len(ids) < ready.model.context_length - ready.session.virtual_tokens:
                    asked.append(conversation)
                    prompts.append(ids)
        if not prompts:
            return
        length = ready.model.context_length
        try:
            answers = greedy_batch(
                ready.session, prompts, self.training.sample_tokens, ready.tokenizer.stop_ids, length
            )
        except OutOfMemory as error:
            yield Note(text=msg("no sampled answers this time: {error}", error=error))
            return
        for conversation, answer in zip(asked, answers, strict=True):
            yield Sample(
                step=self.state.step,
                prompt=conversation.messages[-2].content,
                answer=ready.tokenizer.text(answer),
                reference=conversation.messages[-1].content,
            )

    def _save(self) -> Checkpoint:
        ready, state = self.ready, self.state
        self._count()
        ready.run.sync()  # what led to the checkpoint is on the disk before it
        target = checkpoint.save(
            ready.run.checkpoints,
            ready.plan,
            ready.session.tensors(ready.adapter),
            ready.session.optimizer_state(ready.adapter),
            state,
            ready.model.name,
            self._identify,
        )
        self._saved = state.step
        self._prune()
        return Checkpoint(step=state.step, folder=str(target))

    def _prune(self) -> None:
        checkpoint.prune(self.ready.run.checkpoints, self.training.keep_checkpoints, self.state.best_step)

    def _publish(self) -> None:
        """Write `adapter/`: the weights as they are now."""
        it = self.ready
        publish(it.run, it.plan, it.session.tensors(it.adapter), it.model.name, self._identify)

    def _finish(self, reason: str) -> Iterator[Event]:
        state = self.state
        best = self.ready.run.checkpoints / f"step-{state.best_step:06d}"
        worse = state.best_step != state.step and best.exists()
        if worse:
            try:
                checkpoint.examine(best)
            except DamagedRun as error:
                worse = False
                yield Note(text=notes.best_is_damaged(best, error))
        if worse and self.training.early_stopping:
            publish_checkpoint(self.ready.run, best, self.ready.plan, summed=True)
            yield Note(text=notes.best_published(state.best_step))
        else:
            self._publish()
            if worse:
                yield Note(text=notes.best_kept(state.best_step, best))
        if state.best_loss is not None and state.best_step == 0:
            yield Note(text=notes.no_better_than_base(state.best_loss))
        yield Finished(reason=reason, summary=self.summary())

    def summary(self) -> dict[str, Any]:
        """What `train --json` prints last."""
        ready, state = self.ready, self.state
        return {
            "run": ready.run.name,
            "adapter": str(ready.run.adapter),
            "backend": ready.backend,
            "device": ready.session.device.id,
            "method": ready.spec.method.key,
            "model": ready.model.name,
            "steps": state.step,
            "first_loss": state.first_loss,
            "last_loss": state.last_loss,
            "validation_loss": state.validation_loss,
            "best_validation_loss": state.best_loss,
            "trained_tokens": state.trained_tokens,
            "supervised_tokens": state.supervised_tokens,
            "trainable_parameters": trainable_parameters(ready.plan),
            "mergeable": tuner_of(ready.plan).merge_refusal(ready.plan) is None,
            "seconds": round(state.seconds, 3),
            "cpu_seconds": round(state.cpu_seconds, 3),
            "peak_memory_bytes": state.peak_memory_bytes,
        }

    def _identify(self, folder: Path) -> None:
        ready = self.ready
        write_identity(
            folder,
            ready.model.identity(),
            ready.run.name,
            {
                "method": ready.spec.method.key,
                "step": self.state.step,
                "parameters": trainable_parameters(ready.plan),
                VOCABULARY: ready.model.vocabulary_sha256,
            },
        )

    def _count(self) -> None:
        """Add the time since the last count to the state, so that it survives interruptions."""
        clock, cpu = time.perf_counter(), time.process_time()
        self.state.seconds += clock - self._clock
        self.state.cpu_seconds += cpu - self._cpu
        self._clock, self._cpu = clock, cpu
        self.state.peak_memory_bytes = max(self.state.peak_memory_bytes, self.ready.session.memory().peak_bytes)


def _seed_of(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
