"""A trial: a few steps on a few rows before the real training, by which a family chooses settings (LoRA-drop its layers)."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np

from finetune_local.backend import Session
from finetune_local.data.dataset.batching import batches_for_scoring, micro_batches
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import RunSpec
from finetune_local.spec.tuners import Calibration
from finetune_local.system.errors import OutOfMemory, TrainingDiverged
from finetune_local.system.messages import msg
from finetune_local.training.events import Event, Phase
from finetune_local.training.schedule import learning_rate

if TYPE_CHECKING:
    from finetune_local.data.dataset.store import Dataset

ADAPTER = "trial"
_STREAM = 0x7269616C
"""Keeps the trial's random numbers apart from those of the training with the same seed."""


def update_sizes(
    session: Session, plan: AdapterPlan, calibration: Calibration, spec: RunSpec, data: Dataset
) -> Generator[Event, None, dict[str, float]]:
    """Train `plan` on a sample; the mean squared size of its update at each module then, per token of the sample.

    The same for the same seed. The session is left as it was. Raises TrainingDiverged, OutOfMemory.
    """
    training = spec.training.model_copy(update={"max_steps": calibration.steps})
    size = spec.training.batch_size or 1
    rng = np.random.default_rng([training.seed, _STREAM])
    rows = rng.permutation(len(data))[: max(min(size, len(data)), math.ceil(calibration.share * len(data)))]
    order = np.concatenate([rng.permutation(rows) for _ in range(math.ceil(calibration.steps * size / len(rows)))])
    objective = spec.objective.objective
    tokens = training.micro_batch_tokens or 1024
    session.attach(ADAPTER, plan, training.seed)
    try:
        session.prepare(ADAPTER, training)
        for step in range(calibration.steps):
            yield Phase(name=msg("trying out which layers matter"), done=step / (calibration.steps + 1))
            rate = learning_rate(
                step + 1, calibration.steps, training.learning_rate or 0.0, training.warmup, training.schedule
            )
            session.seed(int(rng.integers(2**31)))
            while True:
                batches = micro_batches(data, order[step * size : (step + 1) * size], tokens)
                try:
                    result = session.step(batches, objective, rate)
                    break
                except OutOfMemory:
                    if max(len(batch.ids) for batch in batches) == 1:
                        raise
                    tokens = max(1, min(tokens, max(batch.ids.size for batch in batches)) // 2)
            if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
                raise TrainingDiverged(
                    msg(
                        "step {step} of the trial by which layers are chosen: the loss is {loss} and the gradient's norm "
                        "{norm}. Try again with a lower --learning-rate than {rate}.",
                        step=step + 1,
                        loss=result.loss,
                        norm=result.gradient_norm,
                        rate=f"{training.learning_rate:g}",
                    )
                )
        sums: dict[str, float] = {}
        seen = 0
        for _, batch in batches_for_scoring(data, rows, tokens):
            for module, found in session.update_sizes(batch).items():
                sums[module] = sums.get(module, 0.0) + found
            seen += batch.tokens
    finally:
        session.detach(ADAPTER)
    return {module: found / seen for module, found in sums.items()}
