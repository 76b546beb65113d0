"""Undoing a step on MLX: arrays never change, so references to the old ones are enough."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import mlx.core as mx

from finetune_local.system.errors import OutOfMemory
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.training.optimizer import GROUP_BYTES, AdamW
from finetune_local_backends.mlx.tuners import MlxAdapter
from finetune_local_backends.session_base import Training
from finetune_local_backends.undo import affordable, all_or_nothing, track_again, tracked


class MlxUndo:
    """See Undo. It takes a second copy of the trained parameters and of the optimizer's states while the step writes."""

    def __init__(self, work: Sequence[tuple[Training[AdamW], MlxAdapter]]) -> None:
        self._held = [
            (training, adapter, dict(adapter.parameters), training.optimizer.moment(), tracked(training.tracker))
            for training, adapter in work
        ]

    def put_back(self) -> None:
        """See Undo."""
        for training, adapter, parameters, moment, kept in self._held:
            adapter.parameters.update(parameters)
            training.optimizer.return_to(moment)
            track_again(training.tracker, kept)
        mx.clear_cache()  # the memory of the failed writes, for what is derived again
        for _, adapter, *_ in self._held:
            adapter.after_step()


def writing(work: Sequence[tuple[Training[AdamW], MlxAdapter]], free: int) -> AbstractContextManager[None]:
    """Around the writes of a step, of which there may be `free` more bytes: all or nothing.

    A whole model is not copied where memory is short (see affordable()). Then the memory for the largest group of tensors is checked
    before the first write; each later group uses what the one before has freed. Raises OutOfMemory.
    """
    sizes = [adapter.parameters[name].nbytes for training, adapter in work for name in training.trained]
    states = sum(training.optimizer.nbytes(name) for training, _ in work for name in training.trained)
    if affordable(sum(sizes) + states, free):
        return all_or_nothing(MlxUndo(work))
    need = 3 * max(GROUP_BYTES, *sizes)
    if need > free:
        raise OutOfMemory(
            msg(
                "there is not enough memory for the update of the weights: it needs about {need} GiB, and {free} GiB "
                "are free.",
                need=f"{need / 2**30:.1f}",
                free=f"{free / 2**30:.1f}",
            )
        )
    return all_or_nothing(None)
