"""The port between the app and its backends: what a backend must offer, in numpy and plain Python.

No tensor of torch or MLX crosses it. Backends are found by listing the package `finetune_local_backends`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from finetune_local.spec.batch import Batch, Floats, ValueKind
from finetune_local.spec.objectives import Objective
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import Precision, Quantisation, TrainingSettings
from finetune_local.system.errors import SpecError
from finetune_local.system.fields import choices
from finetune_local.system.messages import Message, join_messages, msg


@dataclass(frozen=True)
class Device:
    """A device on which a backend can compute. `kind` is "cuda", "metal" or "cpu"; `memory_bytes` is its total memory.

    `fast_bf16`: with this backend it multiplies bf16 matrices faster than fp32 ones.
    """

    id: str
    kind: str
    name: str
    memory_bytes: int
    fast_bf16: bool = False


@dataclass(frozen=True)
class Gap:
    """A value of a setting that a backend does not support on a kind of device ("" for all), with the reason.

    If a preset, not the user, chose the value, `instead` replaces it; with None, or if the user chose it, the run is refused.
    """

    setting: str
    value: object
    device: str
    reason: Message
    instead: object | None


@dataclass(frozen=True)
class StepRequest:
    """One adapter's part of a step: its name, its micro-batches, its objective and its learning rate.

    No example is split between micro-batches. If the objective needs the reference, the session computes it before the step for
    micro-batches without one.
    """

    name: str
    batches: Sequence[Batch]
    objective: Objective
    learning_rate: float


@dataclass(frozen=True)
class StepResult:
    """The result of an optimizer step: the mean loss before it, and the gradient's norm before clipping."""

    loss: float
    gradient_norm: float


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use now and the peak since the session was created: the device's memory, on a CPU the process's."""

    current_bytes: int
    peak_bytes: int


class Decoder(Protocol):
    """One text or a batch of texts with a key/value cache, computed with the adapters that were active at creation."""

    def feed(self, rows: Sequence[Sequence[int]]) -> Floats:
        """Append tokens to each row; returns the logits after the last one, (rows, vocabulary) in float32.

        The first call appends the prompts, which may have different lengths; later calls append equally many tokens to each row.
        """
        ...


class Session(Protocol):
    """A loaded base model and its adapters in memory. Not thread-safe; a process has one session."""

    precision: Precision
    device: Device

    @property
    def ensemble_size(self) -> int:
        """Number of prompts in the active adapter's prompt ensemble, whose answers are put to a vote; 1 for other adapters.

        Row i of a decoder is computed with prompt i % ensemble_size.
        """
        ...

    @property
    def virtual_tokens(self) -> int:
        """Number of context positions that the active adapter uses before every text."""
        ...

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
        """Add an adapter called `name` and activate it; returns its number of trained parameters.

        `tensors` have the keys and shapes of the tuner's `shapes(plan)`. Without them the adapter has the tuner's `initial` values, which
        are equal on every backend. Some of these need `ids`, which tokenizes a text, or `stored`, which returns a weight of the base as
        stored on disk. `value_head` adds a scalar head (spec/value_head.py), one more tensor, unless `tensors` contain one.

        Raises ModelError if the base has no module of a target's name, AdapterError if the name is taken or a tensor is missing, unknown
        or of another shape. The session is then unchanged.
        """
        ...

    def detach(self, name: str) -> None:
        """Remove an adapter from memory; the base is as before attach(). Raises AdapterError for an unknown name."""
        ...

    def adapters(self) -> list[str]:
        """Names of the adapters in memory."""
        ...

    def activate(self, adapters: str | Mapping[str, float] | None) -> None:
        """Activate one adapter, a weighted sum of several, or none (None: the bare base). Nothing is reloaded.

        A weighted sum computes as if every adapter's update, times its weight, were merged into the base. Raises AdapterError for an
        unknown name, Unsupported for adapters whose updates cannot be added (Tuner.sum_refusal).
        """
        ...

    def weight(self, name: str) -> Floats:
        """A weight of the bare base by its name on disk, in fp32; dequantised if the base is quantised. Raises ModelError if missing."""
        ...

    def tensors(self, name: str) -> dict[str, Floats]:
        """An adapter's tensors in fp32 by their names on disk."""
        ...

    def prepare(self, name: str, training: TrainingSettings) -> None:
        """Prepare an adapter for training: create its optimizer and set gradient checkpointing. Others stay prepared.

        Raises Unsupported if the base cannot be trained, or a setting is not supported.
        """
        ...

    def seed(self, seed: int) -> None:
        """Seed the random numbers of the next step (dropout). Every step has its own seed, so resuming needs no generator state."""
        ...

    def step(self, batches: Sequence[Batch], objective: Objective, learning_rate: float) -> StepResult:
        """One optimizer step, over micro-batches, of the adapter that was prepared last.

        The loss is the mean over what Objective.count counts. The step is all or nothing: after OutOfMemory or any other error the
        weights, the optimizer and the tracker are bit for bit as before, and the step can be retried. To this end the trained weights
        and their states are copied before they are written; a whole model is copied only if that takes at most an eighth of the free
        memory. Without a copy, an error while writing raises RunError. A loss or gradient that is not finite is returned and not applied.
        """
        ...

    def step_many(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        """One optimizer step of each of several prepared adapters, with one pass of the base over all their rows.

        Each result equals that of step() up to rounding; dropout draws other numbers. All or nothing, as step(). Raises Unsupported if
        an adapter cannot share a pass (Tuner.sharing_refusal).
        """
        ...

    def score(self, batch: Batch, reference: bool = False, group: int = 0) -> Floats:
        """Log-probabilities of the supervised tokens in row-major order, (n,); nothing is trained, dropout is off.

        With `reference` they are those of the bare base, the reference model of preference and reinforcement learning; the active
        adapters stay active. `group`: positions in a group of shifted attention, 0 for full attention.
        """
        ...

    def values(self, batch: Batch, kind: ValueKind) -> Floats:
        """Outputs of the active adapter's value head: (n,) for "token values", (rows,) for "row values"; see Readout.values.

        Raises AdapterError if no adapter with a value head is active.
        """
        ...

    def update_sizes(self, batch: Batch) -> dict[str, float]:
        """The squared norm of s·B·A·x, summed over the batch's tokens without padding, by module with a low-rank update.

        Raises AdapterError if no adapter is active.
        """
        ...

    def logits(self, ids: Sequence[int]) -> Floats:
        """All logits of one short sequence, (length, vocabulary): for verification and liveness, not for training."""
        ...

    def decoder(self) -> Decoder:
        """A new decoder, which computes with the adapters that are active now."""
        ...

    def optimizer_state(self, name: str | None = None) -> dict[str, npt.NDArray[np.generic]]:
        """The complete state of an adapter's optimizer as named arrays; without a name, of the adapter prepared last."""
        ...

    def restore_optimizer(self, state: Mapping[str, npt.NDArray[np.generic]], name: str | None = None) -> None:
        """Restore a state returned by optimizer_state(). Raises AdapterError, with nothing changed, if it does not fit this optimizer."""
        ...

    def memory(self) -> MemoryUse:
        """Memory in use."""
        ...


class Backend(Protocol):
    """A framework in which models are computed and trained."""

    name: str

    def missing(self) -> str | None:
        """None if the backend can be used here, else the reason and the command that installs it. Imports nothing heavy."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of its libraries by name, without importing them."""
        ...

    def devices(self) -> list[Device]:
        """The devices it can compute on, best first."""
        ...

    def gaps(self) -> tuple[Gap, ...]:
        """The values of settings that it does not support; see GAPS in device.py of the backend."""
        ...

    def notes(self) -> list[Message]:
        """Sentences for `doctor`: what is slow on this machine, and what to install for more speed or support."""
        ...

    def tuners(self) -> frozenset[str]:
        """The keys of the tuners it implements."""
        ...

    def load(
        self,
        folder: Path,
        precision: Precision,
        device: str | None = None,
        quantisation: Quantisation = "auto",
        rope_factor: float = 1.0,
    ) -> Session:
        """Load a Hugging Face folder (safetensors only, no remote code). Raises ModelError, OutOfMemory, Unsupported.

        `quantisation` is how 4-bit weights are stored ("auto": see automatic_quantisation()); other precisions ignore it. `rope_factor`
        interpolates positions (spec/numerics/rope.py); raises SpecError if the base's rotary embedding cannot be interpolated.
        """
        ...


@cache
def backends() -> Mapping[str, Backend]:
    """Every backend in this installation, usable or not, by name."""
    package = importlib.import_module("finetune_local_backends")
    found: dict[str, Backend] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            backend: Backend = importlib.import_module(f"{package.__name__}.{module.name}").BACKEND
            found[backend.name] = backend
    return found


def choose(requested: str = "auto") -> tuple[Backend, Message]:
    """The backend to use, and the reason. Raises SpecError if the requested one is unknown or cannot be used."""
    known = backends()
    if requested != "auto":
        if requested not in known:
            raise SpecError(
                msg("there is no backend '{name}'.{did_you_mean} Known: auto, {names}.", **choices(requested, known))
            )
        if reason := known[requested].missing():
            raise SpecError(msg("--backend {name} cannot be used here: {reason}", name=requested, reason=reason))
        return known[requested], msg("as requested")
    usable = {name: backend for name, backend in known.items() if backend.missing() is None}
    if not usable:
        reasons = join_messages(
            " ", (msg("{name}: {reason}", name=name, reason=backend.missing()) for name, backend in known.items())
        )
        raise SpecError(msg("no backend can be used here. {reasons}", reasons=reasons))
    ranked = [(_rank(b), b) for b in usable.values()]
    best = min(ranked, key=lambda pair: pair[0])[1]
    device = best.devices()[0]
    if len(usable) == 1:
        return best, msg("it can use {device}, and no other is installed", device=device.name)
    return best, msg("it can use {device}", device=device.name)


def automatic_quantisation(backend: Backend) -> tuple[Quantisation, Message]:
    """How a backend stores 4-bit weights by default, and the reason: affine groups if it supports them, else NF4."""
    for gap in backend.gaps():
        if (gap.setting, gap.value) == ("model.quantisation", "affine"):
            return "nf4", gap.reason
    return "affine", msg(
        "it is faster on {backend}; --quantisation nf4 works on every backend",
        backend=backend.name,
    )


def _rank(backend: Backend) -> tuple[int, str]:
    """Sort key: Metal with MLX first, then CUDA, then torch on a CPU, then MLX's CPU build, which is for comparisons only."""
    kind = backend.devices()[0].kind
    return {"metal": 0, "cuda": 1, "cpu": 2 if backend.name == "torch" else 3}.get(kind, 4), backend.name
