"""Forecast a run from its spec: automatic values, memory, duration, mistakes.

Nothing is loaded and no framework is imported; the device was looked up before. The forecast is an estimate: the worker, which reads
all of the data, may settle on other values.

Duration. A token costs about 4 floating-point operations per weight of the blocks if the base is frozen (2 forward, 2 backward to the
activations), 6 if its weights are trained (2 more for their gradients), and 2 more for each other forward pass: gradient
checkpointing, the reference of an objective (Kaplan et al. 2020, arXiv:2001.08361, section 2.1, count the 6). Machines reach
different shares of their peak, so the measured pace of an earlier run on this machine is preferred to arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

from finetune_local import backend as port
from finetune_local.backend import Device
from finetune_local.data.dataset.store import Dataset
from finetune_local.models.folder import ModelFolder
from finetune_local.models.memory.estimate import Estimate, estimate, verdict
from finetune_local.spec import defaults
from finetune_local.spec.defaults import Choice
from finetune_local.spec.objectives import objectives
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import RunSpec, parse_spec
from finetune_local.spec.tuners import preset_named, trainable_parameters, tuners
from finetune_local.system.errors import DataError, FinetuneError, SpecError, UserError
from finetune_local.system.messages import Message, parts
from finetune_local.training.check import facts_for, plan_for, settle
from finetune_local.training.events import Note
from finetune_local.training.run_folder.facts import RunFacts

REACHED = 0.6
"""Share of a CPU's matrix speed that training reaches; 0.5 to 0.7 were measured."""

FORWARD = 2
"""Floating-point operations per weight and token of a forward pass."""

BF16_GAIN = 1.8
"""Speed of bf16 over fp32 training on a CPU with fast bf16; 1.5 to 2.1 were measured."""

Basis = Literal["same", "similar", "rough", "unknown"]


@dataclass(frozen=True)
class Work:
    """The properties of a training that determine its pace."""

    model: str
    parameters: int
    backend: str
    precision: str
    whole: bool
    """Whether the base's own weights are trained."""
    checkpointing: bool = False
    reference: bool = False
    """Whether every step also computes the reference of its rows."""

    @property
    def operations(self) -> float:
        """Floating-point operations per token."""
        forward_passes = 1 + self.checkpointing + self.reference
        return self.parameters * (FORWARD * forward_passes + (4 if self.whole else 2))


@dataclass(frozen=True)
class Pace:
    """Tokens per second and their basis: a run of the same model ("same"), of another one ("similar"), or arithmetic ("rough")."""

    tokens_per_second: float
    basis: Basis
    run: str = ""


def pace(work: Work, before: Iterable[tuple[Work, float, str]], flops: float | None, fast_bf16: bool) -> Pace:
    """The expected pace.

    `before` are earlier runs on this machine, newest first: (work, tokens per second, name). `flops` is the measured speed of the
    processor's fp32 matrix products, in operations per second; None if it was not measured.
    """
    nearest: tuple[float, Pace] | None = None
    for other, speed, name in before:
        if other.backend != work.backend or other.precision != work.precision or speed <= 0:
            continue
        scaled = speed * other.operations / max(1.0, work.operations)
        same = (other.model, other.whole, other.reference) == (work.model, work.whole, work.reference)
        distance = abs(other.operations / max(1.0, work.operations) - 1) + (0 if same else 1)
        if nearest is None or distance < nearest[0]:
            nearest = distance, Pace(scaled, "same" if same else "similar", name)
    if nearest is not None:
        return nearest[1]
    if not flops:
        return Pace(0.0, "unknown")
    gain = BF16_GAIN if fast_bf16 and work.precision == "bf16" else 1.0
    return Pace(REACHED * gain * flops / max(1.0, work.operations), "rough")


def work_of_run(facts: RunFacts, parameters: Mapping[str, int]) -> tuple[Work, float, str] | None:
    """A finished run's work, tokens per second and name; None if it was too short or its model's size is not in `parameters`."""
    model = facts.model or ""
    if not facts.seconds or not facts.trained_tokens or (facts.steps or 0) < 3 or model not in parameters:
        return None
    whole = (facts.trainable_parameters or 0) > parameters[model] // 2
    objective = objectives().get(facts.objective or "")
    work = Work(
        model,
        parameters[model],
        facts.backend or "",
        facts.precision or "",
        whole,
        reference=objective is not None and objective.reference_in_steps,
    )
    return work, facts.trained_tokens / facts.seconds, facts.run


@dataclass(frozen=True)
class DataFacts:
    """Properties of the data: examples, the tokens of all their rows, tokens of the longest row, examples held out."""

    rows: int
    tokens: int
    longest: int
    held_out: int

    @property
    def mean(self) -> float:
        """Mean tokens per example."""
        return self.tokens / max(1, self.rows)


def facts_of_prepared(folder: Path) -> DataFacts | None:
    """The properties of a run's prepared data; None if it is missing or damaged."""
    try:
        train, held_out = Dataset(folder, "train"), Dataset(folder, "validation")
    except DataError:
        return None
    longest = max((int(rows.lengths.max()) for rows in (train, held_out) if len(rows)), default=0)
    return DataFacts(len(train) + len(held_out), train.tokens + held_out.tokens, longest, len(held_out))


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it starts. All fields but `problems` may be missing, if what they depend on is not known yet."""

    problems: tuple[str, ...] = ()
    spec: RunSpec | None = None
    chosen: tuple[Choice, ...] = ()
    notes: tuple[Note, ...] = ()
    memory: Estimate | None = None
    verdict: str = ""
    device: Device | None = None
    steps: int | None = None
    seconds: float | None = None
    pace: Pace | None = None
    trainable: int | None = None
    automatic: Mapping[str, object] = field(default_factory=dict)
    """Automatic values by dotted path."""


PaceOf = Callable[[Work, bool], Pace]


def forecast(
    tables: Mapping[str, Any],
    device: Device | None,
    find_model: Callable[[RunSpec], ModelFolder | None],
    data: DataFacts | None,
    pace_of: PaceOf,
    usual_backend: str | None = None,
) -> Forecast:
    """Forecast the run of a spec's tables. The user's mistakes are returned as `problems`, one sentence each, not raised.

    `find_model` returns the base if it is on disk, else None; it may raise UserErrors. `usual_backend` is what "auto" resolves to on
    this machine.
    """
    try:
        spec = parse_spec(tables, "form")
    except SpecError as error:
        return Forecast(problems=_sentences(error))
    if device is None:
        return Forecast(spec=spec)
    name = spec.backend if spec.backend != "auto" else usual_backend or "auto"
    try:
        backend = port.backends().get(name) or port.choose(name)[0]
        spec, notes = settle(spec, backend, device)
        model = find_model(spec)
        if model is None:
            return Forecast(spec=spec, notes=tuple(notes), device=device, automatic=_automatic(spec, ()))
        plan = plan_for(spec, model)
    except UserError as error:
        return Forecast(problems=_sentences(error), spec=spec, device=device)
    spec, chosen = _resolved(spec, model, plan, device, data)
    largest = spec.objective.objective.rows * _longest(spec, model, data) if data is not None else 0
    needed = estimate(model, spec, plan, device.kind, largest)
    steps = spec.training.max_steps if data is not None else None
    expected, seconds = _duration(spec, model, backend.name, device, data, pace_of)
    return Forecast(
        spec=spec,
        chosen=tuple(chosen),
        notes=tuple(notes),
        memory=needed,
        verdict=verdict(needed, device.memory_bytes),
        device=device,
        steps=steps,
        seconds=seconds,
        pace=expected,
        trainable=trainable_parameters(plan),
        automatic=_automatic(spec, chosen),
    )


def _resolved(
    spec: RunSpec, model: ModelFolder, plan: AdapterPlan, device: Device, data: DataFacts | None
) -> tuple[RunSpec, list[Choice]]:
    """The spec with the automatic values that depend on the data; unchanged if the data is not known."""
    if data is None:
        return spec, []
    held_out = data.held_out or (round(data.rows * spec.data.validation) if not spec.data.validation_files else 0)
    rows = max(1, data.rows - (0 if data.held_out else held_out))
    longest = _longest(spec, model, data)
    return defaults.resolve(spec, facts_for(spec, model, plan, device, rows, longest, held_out))


def _longest(spec: RunSpec, model: ModelFolder, data: DataFacts) -> int:
    return min(data.longest, spec.data.max_length or model.context_length)


def _duration(
    spec: RunSpec, model: ModelFolder, backend: str, device: Device, data: DataFacts | None, pace_of: PaceOf
) -> tuple[Pace | None, float | None]:
    """The expected pace and the duration in seconds; None if the data or the number of steps is not known."""
    steps = spec.training.max_steps
    if not steps or data is None:
        return None, None
    objective = spec.objective.objective
    work = Work(
        spec.model.id,
        model.parameters,
        backend,
        spec.model.precision or "fp32",
        tuners()[preset_named(spec.method.key).tuner].trains_base,
        bool(spec.training.gradient_checkpointing),
        objective.reference_in_steps,
    )
    expected = pace_of(work, device.fast_bf16)
    if not expected.tokens_per_second:
        return expected, None
    longest = objective.rows * (spec.data.max_length or math.inf)
    tokens = steps * (spec.training.batch_size or 1) * min(data.mean, longest)
    once = data.tokens * FORWARD * work.parameters / work.operations if objective.keeps_reference else 0.0
    return expected, (tokens + once) / expected.tokens_per_second


def backends_without(key: str) -> list[str]:
    """The backends that do not implement a method."""
    tuner = preset_named(key).tuner
    return [name for name, backend in port.backends().items() if tuner not in backend.tuners()]


def _automatic(spec: RunSpec, chosen: Iterable[Choice]) -> dict[str, object]:
    found: dict[str, object] = {"model.precision": spec.model.precision, "model.quantisation": spec.model.quantisation}
    return found | {choice.setting: choice.value for choice in chosen}


def _sentences(error: FinetuneError) -> tuple[str, ...]:
    lines = parts(error.message)
    return tuple(line.values["error"] if _is_placed(line) else line for line in lines if line.strip())


def _is_placed(line: str) -> TypeGuard[Message]:
    return isinstance(line, Message) and line.template == "{place}: {error}" and line.values["place"] == "form"
