"""What the conformance suite is written with: plans, batches and specs for tiny models, by names alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from finetune_local.backend import Backend, Gap, Session, StepRequest
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import Objective, objectives
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import Precision, RunSpec, parse_spec, plan_method
from finetune_local.spec.tuners import preset_named, tuners

SFT = objectives()["sft"]
ROWS = ([1, 40, 41, 42, 43, 44, 45, 2], [1, 60, 61, 62, 63, 2], [1, 300, 301, 302, 303, 304, 305, 306, 307, 2])
PROMPT = 3
"""How many tokens of each of ROWS are the prompt, which is not learned."""


SMALL: dict[str, Any] = {
    "adapter_width": 4,
    "prefix_length": 5,
    "prefix_width": 16,
    "prompt_length": 6,
    "rank": 4,
    "kept": ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"),
    "init_rank": 6,
    "target_rank": 4,
}
"""Sizes of settings that suit a tiny model; a family gets those it has."""

RATES: dict[str, float] = {
    "adalora": 2e-2,
    "adapter": 2e-2,
    "adapter-pfeiffer": 3e-2,
    "bitfit": 1e-1,
    "ia3": 2e-1,
    "lora-plus": 2e-3,
    "norms": 1e-1,
    "p-tuning": 3e-3,
    "prompt": 3e-2,
    "prompt-ensemble": 3e-2,
    "vera": 1e-1,
}
"""Learning rates at which a tiny model learns in a few steps, where 1e-2 is not right."""

MORE_STEPS: dict[str, int] = {"p-tuning": 30, "prefix": 20, "prompt": 20, "prompt-ensemble": 20}
"""How many steps training needs to fall clearly, where 10 are not enough."""


@dataclass
class Case:
    """A method on a loaded tiny model, ready to attach."""

    backend: Backend
    session: Session
    plan: AdapterPlan
    spec: RunSpec
    folder: Path

    def reload(self) -> Session:
        """Another session of the same kind."""
        return self.backend.load(self.folder, self.session.precision)

    def attach(self, tensors: Mapping[str, npt.NDArray[np.float32]] | None = None) -> int:
        """Attach the adapter "a" with the seed 1."""
        return self.session.attach("a", self.plan, 1, tensors)

    def train(
        self, steps: int = 10, session: Session | None = None, first: int = 0, slower: float = 1.0
    ) -> list[float]:
        """Train "a" (attached and prepared already) on ROWS at the method's rate, or a part of it; the losses."""
        session, rate = session or self.session, RATES.get(self.spec.method.key, 1e-2) / slower
        losses = []
        for step in range(first, first + steps):
            session.seed(step)
            losses.append(session.step([batch()], SFT, rate).loss)
        return losses


def batch(rows: Sequence[Sequence[int]] = ROWS, prompt: int = PROMPT) -> Batch:
    """Rows padded on the right; all but the prompt is supervised."""
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), int(lengths.max())), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    places = np.arange(ids.shape[1])
    return Batch(ids, lengths, (places >= prompt) & (places < lengths[:, None]))


def small(method: str) -> dict[str, Any]:
    """The sizes that suit a tiny model, of those the method has."""
    known = tuners()[preset_named(method).tuner].settings.model_fields
    return {name: value for name, value in SMALL.items() if name in known}


def make_spec(method: str, precision: Precision | None = None, **training: Any) -> RunSpec:
    """The method's own spec at a tiny rank; without warm-up."""
    tables: dict[str, Any] = {"method": {"key": method, **small(method)}, "training": {"warmup": 0.0, **training}}
    if precision is not None:
        tables["model"] = {"precision": precision}
    return parse_spec(tables, "test")


def make_plan(spec: RunSpec, folder: Path) -> AdapterPlan:
    """What the spec attaches to the model in `folder`."""
    return plan_method(spec.method, ModelFolder.open(folder).info())


def gap_of(backend: Backend, setting: str, value: object) -> Gap | None:
    """The backend's gap for a setting's value on its first device."""
    kind = backend.devices()[0].kind
    return next(
        (g for g in backend.gaps() if g.setting == setting and g.value == value and g.device in ("", kind)), None
    )


def make_case(backend: Backend, method: str, folder: Path, precision: Precision | None = None, **training: Any) -> Case:
    """Load the model for a method; where a gap leaves no way, skip and show its reason."""
    spec = make_spec(method, precision, **training)
    for setting in ("model.precision", "training.optimizer", "method.key"):
        table, name = setting.split(".")
        gap = gap_of(backend, setting, getattr(getattr(spec, table), name))
        if gap is None:
            continue
        if gap.instead is None:
            pytest.skip(f"{backend.name} cannot do {setting} = {gap.value}: {gap.reason}")
        group = getattr(spec, table)
        spec = spec.model_copy(update={table: group.model_copy(update={name: gap.instead})})
    session = backend.load(folder, spec.model.precision or "fp32")
    return Case(backend, session, make_plan(spec, folder), spec, folder)


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Over the last axis, in fp64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result


def gradients_of(session: Session, batch: Batch, objective: Objective = SFT) -> dict[str, npt.NDArray[np.float32]]:
    """The gradients of one batch's loss by the trained tensors of the adapter that was prepared; nothing is stepped."""
    inside: Any = session
    training, requests = inside._ready(), [StepRequest("a", [batch], objective, 0.0)]
    with inside._computing([training], requests):
        if hasattr(inside, "_pass"):  # MLX
            inside._pass.penalty_due = False
        inside._backward(requests, [(0, batch)])
        if hasattr(inside, "_pass"):
            return {name: np.array(value) for name, value in inside._pass.take(0).items()}
        found: dict[str, npt.NDArray[np.float32]] = inside._gradients(training)
        return found
