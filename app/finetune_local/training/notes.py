"""Notes and errors of the training loop: divergence, memory, the best validation loss."""

from __future__ import annotations

from pathlib import Path

from finetune_local.system.errors import DamagedRun, OutOfMemory, TrainingDiverged
from finetune_local.system.messages import Message, msg

RECENT = 10
"""Steps whose mean loss is compared with the first one."""


def no_row_fits(tokens: int, error: OutOfMemory) -> OutOfMemory:
    """A micro-batch of one row does not fit into memory."""
    return OutOfMemory(
        msg(
            "not even one row of {tokens} tokens fits ({error}) Try --max-length with a smaller number, "
            "--gradient-checkpointing, or --method qlora.",
            tokens=tokens,
            error=error,
        )
    )


def smaller_batches(tokens: int, rows: int) -> Message:
    """A step was computed again in smaller micro-batches."""
    return msg(
        "out of memory: computing at most {tokens} tokens at once from now on; a step still learns from {rows} rows",
        tokens=tokens,
        rows=rows,
    )


def gentler(saved: Path | None, rate: float) -> Message:
    """Advice for a run that diverged; `saved` is its last checkpoint."""
    where = (
        msg("The last usable checkpoint is {checkpoint}", checkpoint=saved.name)
        if saved
        else msg("Nothing has been saved yet")
    )
    return msg(
        "{where}. Try again with a lower --learning-rate (a third of {rate}), a longer --warmup, or --precision fp32.",
        where=where,
        rate=f"{rate:g}",
    )


def not_finite(step: int, loss: float, norm: float, advice: Message) -> TrainingDiverged:
    """A step's loss or gradient is NaN or infinite."""
    return TrainingDiverged(
        msg(
            "step {step}: the loss is {loss} and the gradient norm {norm}; the step was not applied. {advice}",
            step=step,
            loss=loss,
            norm=norm,
            advice=advice,
        )
    )


def risen(step: int, first: float, now: float, advice: Message) -> TrainingDiverged:
    """The mean loss of the last RECENT steps is far above the first one."""
    return TrainingDiverged(
        msg(
            "step {step}: the loss has risen from {first} to {now} (mean of {steps} steps). {advice}",
            step=step,
            first=f"{first:.3f}",
            now=f"{now:.3f}",
            steps=RECENT,
            advice=advice,
        )
    )


def validation_not_finite(step: int, loss: float, advice: Message) -> TrainingDiverged:
    """The validation loss is NaN or infinite."""
    return TrainingDiverged(
        msg("the validation loss after step {step} is {loss}. {advice}", step=step, loss=loss, advice=advice)
    )


def best_is_damaged(best: Path, error: DamagedRun) -> Message:
    """The checkpoint with the lowest validation loss cannot be read."""
    return msg(
        "the best checkpoint, {name}, cannot be used ({why}): the adapter is from the last step",
        name=best.name,
        why=error,
    )


def best_published(step: int) -> Message:
    """The published adapter is that of an earlier step."""
    return msg("the adapter is from step {step}, which had the best validation loss", step=step)


def best_kept(step: int, best: Path) -> Message:
    """The published adapter is that of the last step, although an earlier one had a lower validation loss."""
    return msg(
        "the validation loss was best at step {step}; that adapter is kept in {path}",
        step=step,
        path=best,
    )


def no_better_than_base(loss: float) -> Message:
    """No step had a lower validation loss than the base."""
    return msg(
        "the validation loss never fell below that of the base model ({loss}): this adapter does not help on held-out "
        "data. Try a lower --learning-rate, fewer --epochs, or more data.",
        loss=f"{loss:.4f}",
    )
