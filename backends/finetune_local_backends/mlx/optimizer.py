"""AdamW with bias correction, number for number as torch's. Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from finetune_local.errors import AdapterError
from finetune_local.spec.run import TrainingSettings

State = dict[str, npt.NDArray[np.generic]]
MEAN, SQUARE, STEP = "exp_avg.", "exp_avg_sq.", "step"
_GROUP_BYTES = 64 << 20


class AdamW:
    """fp32 states under the parameters' names; `step` counts the updates made."""

    def __init__(
        self, parameters: Mapping[str, mx.array], settings: TrainingSettings, rates: Mapping[str, float] | None = None
    ) -> None:
        """`rates` are factors of the learning rate, and so of the decay, for the names that have one other than 1."""
        self._settings, self._rates = settings, dict(rates or {})
        self._mean = {name: mx.zeros(p.shape, mx.float32) for name, p in parameters.items()}
        self._square = {name: mx.zeros(p.shape, mx.float32) for name, p in parameters.items()}
        self._step = 0

    def update(
        self, parameters: dict[str, mx.array], gradients: dict[str, mx.array], factor: float, rate: float
    ) -> None:
        """One update of those of `parameters` it was made for, with gradients times `factor`; the gradients are used up.

        Tensors are computed in groups of bounded size, so that full fine-tuning never holds its states twice.
        """
        s, step = self._settings, self._step + 1
        correction = 1 - s.beta1**step
        root_correction = math.sqrt(1 - s.beta2**step)
        for names in _groups(self._mean):
            made: dict[str, tuple[mx.array, mx.array, mx.array]] = {}
            for name in names:
                own = rate * self._rates.get(name, 1.0)
                gradient = gradients.pop(name) * factor
                mean = s.beta1 * self._mean[name] + (1 - s.beta1) * gradient
                square = s.beta2 * self._square[name] + (1 - s.beta2) * mx.square(gradient)
                denominator = mx.sqrt(square) / root_correction + s.epsilon
                decayed = parameters[name] * (1 - own * s.weight_decay)
                made[name] = (decayed - own / correction * (mean / denominator), mean, square)
            mx.eval(list(made.values()))
            for name, (parameter, mean, square) in made.items():
                parameters[name], self._mean[name], self._square[name] = parameter, mean, square
        self._step = step

    def state(self) -> State:
        """Everything needed to go on exactly, as named arrays."""
        result: State = {STEP: np.array(self._step, np.int64)}
        for prefix, arrays in ((MEAN, self._mean), (SQUARE, self._square)):
            result.update({prefix + name: np.array(array) for name, array in arrays.items()})
        return result

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Put back what state() gave. Raises AdapterError where names or shapes differ."""
        expected = {STEP: ()} | {
            prefix + name: array.shape
            for prefix, arrays in ((MEAN, self._mean), (SQUARE, self._square))
            for name, array in arrays.items()
        }
        if wrong := sorted(set(expected) ^ set(state)):
            raise AdapterError(
                f"the saved optimizer is of another kind or adapter: '{wrong[0]}' and {len(wrong) - 1} more names do not "
                "match. Resume with the run's own settings, or start a new run from its adapter."
            )
        for name, shape in expected.items():
            if tuple(state[name].shape) != tuple(shape):
                raise AdapterError(f"the saved optimizer's '{name}' has shape {state[name].shape}, expected {shape}.")
        self._step = int(state[STEP])
        self._mean = {name: mx.array(np.asarray(state[MEAN + name], np.float32)) for name in self._mean}
        self._square = {name: mx.array(np.asarray(state[SQUARE + name], np.float32)) for name in self._square}


def _groups(parameters: Mapping[str, mx.array]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name in list(parameters):
        names.append(name)
        size += parameters[name].nbytes
        if size >= _GROUP_BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names
