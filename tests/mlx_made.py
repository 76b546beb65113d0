"""Small families made by a test of the MLX backend, so that each promise of the port is looked at alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from finetune_local.backend import Session
from finetune_local.spec.plan import AdapterPlan, BaseInfo
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import Array, Source, Tuner, VirtualIds, tuners
from finetune_local.system.fields import Settings
from mlx_tools import MLX

Attach = Callable[[Any, AdapterPlan, Mapping[str, np.ndarray]], Any]
PLAN = AdapterPlan("made", "made", Settings(), ())
NONE = VirtualIds()


class Made(Tuner):
    """A family as a test wants it: `own` are its initial tensors, `factors` their rates."""

    key = "made"
    settings = Settings

    def __init__(self, own: Mapping[str, np.ndarray], factors: Mapping[str, float], virtual: VirtualIds) -> None:
        self.own = {name: np.asarray(array, np.float32) for name, array in own.items()}
        self.factors, self.virtual = factors, virtual
        self.kept: Any = None

    def plan(self, method: str, settings: Settings, base: BaseInfo) -> AdapterPlan:
        return PLAN

    def shapes(self, plan: AdapterPlan) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.own.items()}

    def lr_multipliers(self, plan: AdapterPlan) -> Mapping[str, float]:
        return self.factors

    def initial(self, plan: AdapterPlan, seed: int, source: Source) -> Mapping[str, Array]:
        return self.own

    def tracker(self, plan: AdapterPlan, steps: int) -> Any:
        return self.kept

    def virtual_ids(self, plan: AdapterPlan) -> VirtualIds:
        return self.virtual


def know(
    monkeypatch: pytest.MonkeyPatch,
    own: Mapping[str, Any],
    attach: Attach,
    factors: Mapping[str, float] | None = None,
    virtual: VirtualIds = NONE,
) -> Made:
    """Make the family "made" known, `attach` being what its file in the MLX backend has."""
    tuner = Made(own, factors or {}, virtual)
    module = ModuleType("made")
    module.attach = attach  # type: ignore[attr-defined]
    found = {**tuners(), "made": tuner}
    monkeypatch.setitem(sys.modules, "finetune_local_backends.mlx.tuners.made", module)
    monkeypatch.setattr("finetune_local.spec.tuners.tuners", lambda: found)
    return tuner


def attached(folder: Path, training: dict[str, Any] | None = None) -> Session:
    """A session with an adapter "m" of that family, ready to train."""
    session = MLX.load(folder, "fp32", "cpu")
    session.attach("m", PLAN, 1)
    session.prepare("m", TrainingSettings(**(training or {})))
    return session


def scaling(paths: Mapping[str, str]) -> Attach:
    """Modules by name, each multiplied by the tensor that `paths` says."""
    from finetune_local_backends.mlx.layers.wrapped import AdapterLayer, MlxLayers

    class Scaled(AdapterLayer):
        scale: Any

        def __call__(self, base: Any, *args: Any, **kwargs: Any) -> Any:
            return base(*args, **kwargs) * self.scale

    def attach(model: Any, plan: AdapterPlan, tensors: Mapping[str, np.ndarray]) -> Any:
        layers = [(model.place_of(path), Scaled(path, {"scale": name})) for path, name in paths.items()]
        return MlxLayers(tensors, layers)

    return attach
