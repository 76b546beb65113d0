"""AdamW with bias correction, equal to torch's in every number, and with 8-bit states equal to bitsandbytes'.

Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2; how the states are stored is in moments.py. A step is undone from
references to the old arrays, since arrays never change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from finetune_local.spec.run import TrainingSettings
from finetune_local.system.errors import AdapterError, OutOfMemory
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.training.moments import Moments, Step, new_moments
from finetune_local_backends.mlx.tuners import MlxAdapter
from finetune_local_backends.session_base import Training
from finetune_local_backends.undo import affordable, all_or_nothing, track_again, tracked

State = dict[str, npt.NDArray[np.generic]]
STEP = "step"
GROUP_BYTES = 64 << 20
"""Bytes of parameters that are updated together; a larger parameter forms a group alone."""


class AdamW:
    """States by the parameters' names, in 8 bits for adamw-8bit; `step` counts the updates."""

    def __init__(
        self,
        parameters: Mapping[str, mx.array],
        settings: TrainingSettings,
        lr_multipliers: Mapping[str, float] | None = None,
    ) -> None:
        """`lr_multipliers` are factors of the learning rate, and so of the decay, for parameters whose factor is not 1."""
        self._settings, self._lr_multipliers = settings, dict(lr_multipliers or {})
        eight_bit = settings.optimizer == "adamw-8bit"
        self._moments = {name: new_moments(p, eight_bit) for name, p in parameters.items()}
        self._step = 0

    def update(
        self, parameters: dict[str, mx.array], gradients: dict[str, mx.array], factor: float, rate: float
    ) -> None:
        """Update its parameters among `parameters` with gradients times `factor`; the gradients are dropped.

        Tensors are updated in groups of bounded size, so that full fine-tuning never has its states in memory twice. A failure in a later
        group leaves the earlier ones written; see writing(). The largest come first, so that the others reuse their memory.
        """
        s, step = self._settings, self._step + 1
        corrections = 1 - s.beta1**step, math.sqrt(1 - s.beta2**step)
        for names in _groups({name: parameters[name].nbytes for name in self._moments}):
            made: dict[str, tuple[mx.array, Moments]] = {}
            for name in names:
                own = rate * self._lr_multipliers.get(name, 1.0)
                numbers = Step(s.beta1, s.beta2, s.epsilon, *corrections, own, 1 - own * s.weight_decay, factor)
                made[name] = self._moments[name].advance(parameters[name], gradients.pop(name), numbers)
            mx.eval([[parameter, moments.arrays()] for parameter, moments in made.values()])
            for name, (parameter, moments) in made.items():
                parameters[name], self._moments[name] = parameter, moments
        self._step = step

    def moment(self) -> tuple[int, dict[str, Moments]]:
        """The current state, without a copy; for return_to()."""
        return self._step, dict(self._moments)

    def return_to(self, moment: tuple[int, dict[str, Moments]]) -> None:
        """Restore what moment() returned."""
        self._step, self._moments = moment[0], dict(moment[1])

    def nbytes(self, name: str) -> int:
        """Bytes of a parameter's states."""
        return sum(array.nbytes for array in self._moments[name].arrays().values())

    def state(self) -> State:
        """Everything needed to resume exactly, as named arrays."""
        return {STEP: np.array(self._step, np.int64)} | {
            prefix + name: np.array(array)
            for name, moments in self._moments.items()
            for prefix, array in moments.arrays().items()
        }

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Restore what state() returned. Raises AdapterError and changes nothing if names, shapes or types differ."""
        expected = {STEP: ((), "int64")} | {
            prefix + name: (tuple(array.shape), str(array.dtype).removeprefix("mlx.core."))
            for name, moments in self._moments.items()
            for prefix, array in moments.arrays().items()
        }
        if wrong := sorted(set(expected) ^ set(state)):
            raise AdapterError(
                msg(
                    "the saved optimizer state belongs to another optimizer or adapter: '{name}' and {number} more names "
                    "do not match. Resume with the run's own settings, or start a new run from its adapter.",
                    name=wrong[0],
                    number=len(wrong) - 1,
                )
            )
        for name, (shape, kind) in expected.items():
            found = state[name]
            if (found.shape, str(found.dtype)) != (shape, kind):
                raise AdapterError(
                    msg(
                        "the saved optimizer's '{name}' has shape {shape} of {dtype}, expected {expected} of {kind}. Resume "
                        "with the run's own settings, or start a new run from its adapter.",
                        name=name,
                        shape=found.shape,
                        dtype=found.dtype,
                        expected=shape,
                        kind=kind,
                    )
                )
        self._step = int(state[STEP])
        self._moments = {
            name: moments.replaced({prefix: mx.array(state[prefix + name]) for prefix in moments.arrays()})
            for name, moments in self._moments.items()
        }


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names of parameters, largest first, in groups of up to GROUP_BYTES or of a single one."""
    names: list[str] = []
    size = 0
    for name, own in sorted(sizes.items(), key=lambda item: -item[1]):
        names.append(name)
        size += own
        if size >= GROUP_BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names


class MlxUndo:
    """See Undo. Needs memory for a second copy of the trained parameters and the optimizer's states while the step writes."""

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
        mx.clear_cache()  # free the memory of the failed writes before values are derived again
        for _, adapter, *_ in self._held:
            adapter.after_step()


def writing(work: Sequence[tuple[Training[AdamW], MlxAdapter]], free: int) -> AbstractContextManager[None]:
    """Context of a step's writes, with `free` bytes of memory available: all or nothing.

    A whole model is not copied if memory is short (see affordable()). Instead the memory for the largest group of tensors is checked
    before the first write; each later group reuses what the previous one has freed. Raises OutOfMemory.
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
