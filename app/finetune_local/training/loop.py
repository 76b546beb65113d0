"""The training loop: a generator of events, the same for every method, objective and backend.

The loop decides what is computed next and what is saved; the session computes. It depends on no console, process or framework.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from finetune_local.adapters.identity import VOCABULARY, write_identity
from finetune_local.spec.objectives import LOSS
from finetune_local.spec.tuners import trainable_parameters, tuner_of
from finetune_local.system.errors import DamagedRun
from finetune_local.system.messages import Message, msg
from finetune_local.training import notes, validation
from finetune_local.training.checkpoints import checkpoint
from finetune_local.training.checkpoints.checkpoint import publish, publish_checkpoint
from finetune_local.training.events import Checkpoint, Event, Finished, Note, Started, Step, StoppedByUser, Validation
from finetune_local.training.setup import Ready
from finetune_local.training.steps import EpochSource, Pending, Stepper

EXPLODED = 3.0
"""A mean loss this many nats above the first (20 times its perplexity) counts as divergence."""


@dataclass(frozen=True)
class Summary:
    """The last object that `train --json` prints; field names are its keys."""

    run: str
    adapter: str
    backend: str
    device: str
    method: str
    model: str
    steps: int
    first_loss: float | None
    last_loss: float | None
    validation_loss: float | None
    best_validation_loss: float | None
    trained_tokens: int
    supervised_tokens: int
    trainable_parameters: int
    mergeable: bool
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int


class Loop:
    """One run, from its current state to its end. multi_adapter.py drives it, alone or beside others."""

    def __init__(self, ready: Ready, stop: Callable[[], bool], finish: Callable[[], bool] = lambda: False) -> None:
        """`stop` and `finish` are called after every step: `stop()` pauses the run, `finish()` ends it for good."""
        self.ready, self.stop, self.finish = ready, stop, finish
        self.training = ready.spec.training
        self.state = ready.state
        self.objective = ready.spec.objective.objective
        source = EpochSource(ready.data.train, self.training.batch_size or 1, self.training.seed)
        ensemble_size = tuner_of(ready.plan).virtual_ids(ready.plan).ensemble_size
        self.stepper = Stepper(ready.adapter, source, self.objective, self.training, ready.state, ensemble_size)
        self.steps = self.stepper.steps
        self._pace = 0.0
        self._saved = self.state.step
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def work(self) -> Pending:
        """Train. The last event is Finished or StoppedByUser. Raises TrainingDiverged, OutOfMemory, DiskFull."""
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
        self._prune()  # a killed worker may have skipped it
        reason, stopped = self._end(), self.stop()  # the user may have stopped the run during preparation
        if state.step == 0 and not stopped:
            # The loss of the base, for comparison. A run killed before its first checkpoint starts over and measures it again.
            yield from self._validate()
        if stopped and not reason:
            if state.step:
                self._publish()
            yield StoppedByUser(step=state.step, summary=asdict(self.summary()))
            return
        while not reason:
            yield from self._step()
            best = False
            if state.step >= self.steps or state.step % (self.training.validate_every or self.steps) == 0:
                best = yield from self._validate()
            reason = self._end()
            stopped = not reason and self.stop()
            # The best step is saved so that it can be kept. A step is saved after its events: a run killed in between repeats it.
            due = state.step % (self.training.checkpoint_every or self.steps) == 0
            if self._saved != state.step and (best or reason or stopped or due):
                yield self._save()
            if stopped:
                self._publish()
                yield StoppedByUser(step=state.step, summary=asdict(self.summary()))
                return
        yield from self._finish(reason)

    def _end(self) -> str:
        """Why the run ends here, or "". Apart from finish() it depends only on the saved state, so a resumed run agrees."""
        if self.state.step >= self.steps:
            return msg("all steps done")
        if self.training.early_stopping and self.state.worse_validations >= self.training.early_stopping:
            return msg("no better validation loss in {number} validations", number=self.state.worse_validations)
        if self.state.step and self.finish():
            return msg("stopped as requested")
        return ""

    def _step(self) -> Pending:
        state = self.state
        taken = yield from self.stepper.step(state.step, _seed_of(self.training.seed, state.step))
        loss, norm = taken.result.loss, taken.result.gradient_norm
        self._guard(loss, norm)
        state.step += 1
        state.trained_tokens += taken.tokens
        state.supervised_tokens += taken.supervised
        state.first_loss = loss if state.first_loss is None else state.first_loss
        state.last_loss = loss
        self._count()
        self._pace = taken.seconds if not self._pace else 0.9 * self._pace + 0.1 * taken.seconds
        yield Step(
            step=state.step,
            steps=self.steps,
            loss=loss,
            learning_rate=taken.learning_rate,
            gradient_norm=norm,
            tokens=taken.tokens,
            supervised_tokens=taken.supervised,
            tokens_per_second=taken.tokens / taken.seconds,
            seconds_left=self._pace * (self.steps - state.step),
            peak_memory_bytes=state.peak_memory_bytes,
        )

    def _guard(self, loss: float, norm: float) -> None:
        """Raise TrainingDiverged on a non-finite loss or gradient norm, or if the last ten losses are far above the first."""
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
        """Measure the validation metrics and sample answers; returns whether this is the lowest validation loss so far."""
        ready, state = self.ready, self.state
        ready.session.activate(ready.adapter)  # in multi-adapter training another one may be active
        best = False
        if len(ready.data.validation):
            examples, most = ready.data.validation, self.training.validation_rows
            indices = validation.validation_examples(len(examples), most, self.training.seed)
            found = yield from validation.metrics(ready.session, self.objective, examples, indices, self.stepper)
            loss = found.pop(LOSS)
            if not math.isfinite(loss):
                raise notes.validation_not_finite(state.step, loss, self._advice())
            state.validation_loss = loss
            best = state.best_loss is None or loss < state.best_loss
            state.worse_validations = 0 if best else state.worse_validations + 1
            if best:
                state.best_loss, state.best_step = loss, state.step
            yield Validation(step=state.step, loss=loss, best=best, metrics=found)
        yield from validation.samples(ready, state.step)
        self._count()
        return best

    def _save(self) -> Checkpoint:
        ready, state = self.ready, self.state
        self._count()
        ready.run.sync()  # events reach the disk before the checkpoint they led to
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
        """Write the current weights to `adapter/`."""
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
        yield Finished(reason=reason, summary=asdict(self.summary()))

    def summary(self) -> Summary:
        """The run's results so far."""
        ready, state = self.ready, self.state
        return Summary(
            run=ready.run.name,
            adapter=str(ready.run.adapter),
            backend=ready.backend,
            device=ready.session.device.id,
            method=ready.spec.method.key,
            model=ready.model.name,
            steps=state.step,
            first_loss=state.first_loss,
            last_loss=state.last_loss,
            validation_loss=state.validation_loss,
            best_validation_loss=state.best_loss,
            trained_tokens=state.trained_tokens,
            supervised_tokens=state.supervised_tokens,
            trainable_parameters=trainable_parameters(ready.plan),
            mergeable=tuner_of(ready.plan).merge_refusal(ready.plan) is None,
            seconds=round(state.seconds, 3),
            cpu_seconds=round(state.cpu_seconds, 3),
            peak_memory_bytes=state.peak_memory_bytes,
        )

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
        """Add the time since the last call to the state, so that totals survive interruptions."""
        clock, cpu = time.perf_counter(), time.process_time()
        self.state.seconds += clock - self._clock
        self.state.cpu_seconds += cpu - self._cpu
        self._clock, self._cpu = clock, cpu
        self.state.peak_memory_bytes = max(self.state.peak_memory_bytes, self.ready.session.memory().peak_bytes)


def _seed_of(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
