"""A backend in numpy that learns nothing and does it exactly: what it computes follows from the weights, the rows and the seed.

So two runs are equal to the last bit or something was lost. A whole run takes a few hundredths of a second.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.backend import Device, MemoryUse, StepRequest, StepResult
from finetune_local.spec.batch import Batch, Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import tuner_of
from finetune_local.system.errors import AdapterError
from toy_session import ToySession


class ToyTraining(ToySession):
    """A Session that can be trained."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(vocabulary)
        self._tensors: dict[str, dict[str, Floats]] = {}
        self._moments: dict[str, dict[str, Floats]] = {}
        self._seed = 0

    def attach(
        self,
        name: str,
        plan: AdapterPlan,
        seed: int,
        tensors: Mapping[str, Floats] | None = None,
        ids: Callable[[str], list[int]] | None = None,
        stored: Callable[[str], Floats] | None = None,
        value_head: bool = False,
    ) -> int:
        shapes = tuner_of(plan).shapes(plan)
        if tensors is None:
            tensors = {n: _noise(f"{seed} {n}", shape) for n, shape in shapes.items()}
        if {n: t.shape for n, t in tensors.items()} != shapes:
            raise AdapterError("the tensors do not fit the plan.")
        self._tensors[name] = {n: np.array(t, np.float32) for n, t in tensors.items()}
        return super().attach(name, plan, seed, self._tensors[name])

    def tensors(self, name: str) -> dict[str, Floats]:
        return dict(self._tensors[name])

    def prepare(self, name: str, training: TrainingSettings) -> None:
        self._moments[name] = {n: np.zeros_like(t) for n, t in self._tensors[name].items()}

    def seed(self, seed: int) -> None:
        self._seed = seed

    def step_many(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        return [self._step(request) for request in requests]

    def _step(self, request: StepRequest) -> StepResult:
        rows = ",".join(str(zlib.crc32(batch.ids.tobytes())) for batch in request.batches)
        norm = 0.0
        for name, tensor in self._tensors[request.name].items():
            moment = self._moments[request.name][name]
            moment *= np.float32(0.9)
            moment += _noise(f"{self._seed} {rows} {name}", tensor.shape) + np.float32(0.1) * tensor
            tensor -= np.float32(request.learning_rate) * moment
            norm += float(np.abs(moment).mean())
        return StepResult(2.0 + self._swing(request.name), norm)

    def _swing(self, name: str) -> float:
        """A number between −1 and 1 that goes up and down as the weights change."""
        return float(np.sin(50.0 * sum(float(t.mean(dtype=np.float64)) for t in self._tensors[name].values())))

    def score(self, batch: Batch) -> Floats:
        worth = -2.0 - (self._swing(self.active) if self.active else 0.0)
        return np.full(batch.supervised, worth, np.float32)

    def optimizer_state(self, name: str | None = None) -> dict[str, np.ndarray]:
        assert name is not None
        return {f"moment.{n}": m for n, m in self._moments[name].items()}

    def restore_optimizer(self, state: Mapping[str, np.ndarray], name: str | None = None) -> None:
        assert name is not None
        found = {key.removeprefix("moment."): value for key, value in state.items()}
        if {n: m.shape for n, m in found.items()} != {n: t.shape for n, t in self._tensors[name].items()}:
            raise AdapterError("the saved optimizer is of another adapter.")
        self._moments[name] = {n: np.array(m, np.float32) for n, m in found.items()}

    def memory(self) -> MemoryUse:
        return MemoryUse(0, 1)


class ToyBackend:
    """See the module."""

    name = "toy"

    def missing(self) -> str | None:
        return None

    def versions(self) -> dict[str, str]:
        return {}

    def devices(self) -> list[Device]:
        return [Device("cpu", "cpu", "toy", 2**34)]

    def gaps(self) -> tuple[()]:
        return ()

    def notes(self) -> list[str]:
        return []

    def tuners(self) -> frozenset[str]:
        return frozenset({"low_rank"})

    def load(self, folder: Path, precision: str, device: str | None = None, **how: Any) -> ToyTraining:
        return ToyTraining(384)


def _noise(word: str, shape: tuple[int, ...]) -> Floats:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(0, 1, shape).astype(np.float32)
