"""Calibration runs: a few training steps on a sample of the data, from which a tuner chooses settings (LoRA-drop: which layers)."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from finetune_local.backend import Session
from finetune_local.data.dataset.batching import batches_for_scoring
from finetune_local.data.dataset.store import Dataset
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import RunSpec
from finetune_local.spec.tuners import Calibration
from finetune_local.system.errors import OutOfMemory, TrainingDiverged
from finetune_local.system.messages import msg
from finetune_local.training.checkpoints.checkpoint import LoopState
from finetune_local.training.events import Event, Phase
from finetune_local.training.steps import ListSource, PendingStep, Stepper, Taken, take_alone

ADAPTER = "calibration"
_STREAM = 0x7269616C
"""Second part of the seed: calibration draws other random numbers than the training with the same seed."""


def update_sizes(
    session: Session, plan: AdapterPlan, calibration: Calibration, spec: RunSpec, data: Dataset
) -> Generator[Event, None, dict[str, float]]:
    """Train `plan` on a sample of `data`; returns the mean squared size of the update at each module, per token of the sample.

    Deterministic given the seed. The adapter is detached afterwards. Raises TrainingDiverged, OutOfMemory.
    """
    training = spec.training.model_copy(update={"max_steps": calibration.steps})
    size = spec.training.batch_size or 1
    rng = np.random.default_rng([training.seed, _STREAM])
    sample = rng.permutation(len(data))[: max(min(size, len(data)), math.ceil(calibration.share * len(data)))]
    order = np.concatenate([rng.permutation(sample) for _ in range(math.ceil(calibration.steps * size / len(sample)))])
    state = LoopState(micro_batch_tokens=training.micro_batch_tokens or 1024)
    source = ListSource(data, order, size)
    stepper = Stepper(ADAPTER, source, spec.objective.objective, training, state)
    session.attach(ADAPTER, plan, training.seed)
    try:
        session.prepare(ADAPTER, training)
        for step in range(calibration.steps):
            yield Phase(name=msg("calibrating: measuring which layers matter"), done=step / (calibration.steps + 1))
            taken = _taken(session, stepper, step, int(rng.integers(2**31)))
            loss, norm = taken.result.loss, taken.result.gradient_norm
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingDiverged(
                    msg(
                        "step {step} of the calibration run that chooses layers: the loss is {loss} and the gradient's norm "
                        "{norm}. Try again with a lower --learning-rate than {rate}.",
                        step=step + 1,
                        loss=loss,
                        norm=norm,
                        rate=f"{training.learning_rate:g}",
                    )
                )
        sums: dict[str, float] = {}
        tokens = 0
        for _, batch in batches_for_scoring(data, sample, stepper.max_tokens):
            for module, found in session.update_sizes(batch).items():
                sums[module] = sums.get(module, 0.0) + found
            tokens += batch.tokens
    finally:
        session.detach(ADAPTER)
    return {module: found / tokens for module, found in sums.items()}


def _taken(session: Session, stepper: Stepper, done: int, seed: int) -> Taken:
    """Take one step and drop its events."""
    pending = stepper.step(done, seed)
    try:
        item = next(pending)
        while True:
            if not isinstance(item, PendingStep):
                item = next(pending)
                continue
            result = take_alone(session, item)
            item = pending.throw(result) if isinstance(result, OutOfMemory) else pending.send(result)
    except StopIteration as end:
        taken: Taken = end.value
        return taken
