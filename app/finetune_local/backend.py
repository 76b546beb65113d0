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
from finetune_local.system.fields import did_you_mean
from finetune_local.system.messages import Message, join_messages, msg


@dataclass(frozen=True)
class Device:
    """One device a backend can compute on. `kind` is "cuda", "metal" or "cpu"; `memory_bytes` its whole memory.

    `fast_bf16`: it multiplies bf16 matrices faster than fp32 ones, with this backend.
    """

    id: str
    kind: str
    name: str
    memory_bytes: int
    fast_bf16: bool = False


@dataclass(frozen=True)
class Gap:
    """One thing a backend cannot do: a setting's value, on which kinds of device ("" is all), why, what instead.

    `instead` is used where a preset, not the user, set the value; None refuses the run.
    """

    setting: str
    value: object
    device: str
    reason: Message
    instead: object | None


@dataclass(frozen=True)
class StepRequest:
    """One adapter's part of a step: its name, its micro-batches, its objective and its learning rate.

    No example is split between micro-batches. Where the objective needs the reference, the session computes it before the step
    for micro-batches that have none.
    """

    name: str
    batches: Sequence[Batch]
    objective: Objective
    learning_rate: float


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did: mean loss before it, the gradient's norm before clipping."""

    loss: float
    gradient_norm: float


@dataclass(frozen=True)
class MemoryUse:
    """Bytes in use now and at the most since the session began (the device's; the process's on a CPU)."""

    current_bytes: int
    peak_bytes: int


class Decoder(Protocol):
    """A text, or several side by side, that grows with its key/value cache, under what was active when it began."""

    def feed(self, rows: Sequence[Sequence[int]]) -> Floats:
        """Append tokens to each row and return the logits after the last, (rows, vocabulary) float32.

        The first call appends the prompts, of any lengths; later calls append equally many tokens to each row.
        """
        ...


class Session(Protocol):
    """A loaded base model and the adapters in memory beside it. Not thread-safe. A process has one."""

    precision: Precision
    device: Device

    @property
    def ensemble_size(self) -> int:
        """How many prompts of the active adapter answer side by side (a prompt ensemble), to be voted on; 1 for all others.

        Row i of a decoder answers under prompt i % ensemble_size.
        """
        ...

    @property
    def virtual_tokens(self) -> int:
        """Positions of the context that the active adapter takes before every text."""
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

        `tensors` have the keys and shapes of the tuner's `shapes(plan)`. Without them the adapter has the tuner's `initial` values,
        equal on every backend; `ids` tokenizes a text and `stored` returns a weight of the base as it is on disk, where these need it.
        `value_head` adds a scalar head (spec/value_head.py), which is one more tensor; `tensors` with one bring theirs.

        Raises ModelError where the base has no module of a target's name, AdapterError where the name is taken or a tensor is missing,
        unknown or of another shape. The session is then as before.
        """
        ...

    def detach(self, name: str) -> None:
        """Remove an adapter from memory; the base is as it was before attach(). Raises AdapterError where there is none of this name."""
        ...

    def adapters(self) -> list[str]:
        """Names of the adapters in memory."""
        ...

    def activate(self, adapters: str | Mapping[str, float] | None) -> None:
        """Make the base compute with one adapter, with a weighted sum of several, or alone (None). Nothing is reloaded.

        With weights it computes as if every adapter's update, times its weight, were merged into the base. Raises AdapterError for
        an unknown name, Unsupported where an adapter's updates do not add up (Tuner.sum_refusal).
        """
        ...

    def weight(self, name: str) -> Floats:
        """A weight of the bare base by its name on disk, fp32, as computed with (dequantised). Raises ModelError where it is missing."""
        ...

    def tensors(self, name: str) -> dict[str, Floats]:
        """An adapter's tensors, fp32, under the names they have on disk."""
        ...

    def prepare(self, name: str, training: TrainingSettings) -> None:
        """Prepare one adapter for training, beside others: make its optimizer, switch gradient checkpointing.

        Raises Unsupported where the base or a setting cannot be trained here.
        """
        ...

    def seed(self, seed: int) -> None:
        """Seed the random numbers of the next step (dropout): every step has its own, so resuming needs no RNG state."""
        ...

    def step(self, batches: Sequence[Batch], objective: Objective, learning_rate: float) -> StepResult:
        """One optimizer step of the adapter that was prepared last, over micro-batches.

        The loss is the mean over what Objective.count counts. All or nothing: after OutOfMemory, or any other end, the weights, the
        optimizer and the tracker are bit for bit as before, and the step can be tried again. For that an adapter and its states are
        copied while they are written; a whole model only where the copy takes at most an eighth of the free memory. Without a copy, a
        failure among the writes is a RunError. A loss or gradient that is not finite is returned, not applied.
        """
        ...

    def step_many(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        """One optimizer step of each of several prepared adapters, with one pass of the base over the rows of all.

        Each result is that of step(), up to rounding; dropout draws other numbers. All or nothing, as step().
        Raises Unsupported where one of them cannot share a pass (Tuner.sharing_refusal).
        """
        ...

    def score(self, batch: Batch, reference: bool = False, group: int = 0) -> Floats:
        """Log-probabilities of the supervised tokens in row-major order, (n,); nothing is trained, dropout is off.

        With `reference` they are those of the base with every adapter off, the reference model of preference and
        reinforcement learning; what is active stays active. `group`: positions in a group of shifted attention, 0 for full attention.
        """
        ...

    def values(self, batch: Batch, kind: ValueKind) -> Floats:
        """Outputs of the active adapter's value head: (n,) for "token values", (rows,) for "row values"; see Readout.values.

        Raises AdapterError where no adapter with a value head is active.
        """
        ...

    def update_sizes(self, batch: Batch) -> dict[str, float]:
        """The squared size of s·B·A·x, summed over the batch's real tokens, at each module where the active adapter has such an update.

        Raises AdapterError where none is active.
        """
        ...

    def logits(self, ids: Sequence[int]) -> Floats:
        """All logits of one short sequence, (length, vocabulary): for verification and liveness, not for training."""
        ...

    def decoder(self) -> Decoder:
        """A decoder under what is active now."""
        ...

    def optimizer_state(self, name: str | None = None) -> dict[str, npt.NDArray[np.generic]]:
        """The whole state of an adapter's optimizer as named arrays; without a name, of the one prepared last."""
        ...

    def restore_optimizer(self, state: Mapping[str, npt.NDArray[np.generic]], name: str | None = None) -> None:
        """Restore what optimizer_state() returned. Raises AdapterError, with nothing changed, where it is of another shape or kind."""
        ...

    def memory(self) -> MemoryUse:
        """Memory in use."""
        ...


class Backend(Protocol):
    """One way to compute."""

    name: str

    def missing(self) -> str | None:
        """None where the backend can be used here, else why not and the command that installs it. Imports nothing heavy."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of its libraries by name, without importing them."""
        ...

    def devices(self) -> list[Device]:
        """What it can compute on, best first."""
        ...

    def gaps(self) -> tuple[Gap, ...]:
        """What it cannot do; see gaps.py of the backend."""
        ...

    def notes(self) -> list[Message]:
        """Sentences for `doctor`: what is slower than it could be here, and what to install for more."""
        ...

    def tuners(self) -> frozenset[str]:
        """The keys of the tuners it has a file for."""
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

        `quantisation` is how 4 bits are stored, "auto" as automatic_quantisation() says; other precisions ignore it.
        `rope_factor` stretches the positions (spec/numerics/rope.py, which says what raises SpecError).
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
    """The backend to use and the reason. Raises SpecError where `wanted` cannot be used."""
    known = backends()
    if requested != "auto":
        if requested not in known:
            raise SpecError(
                msg(
                    "there is no backend '{name}'.{did_you_mean} Known: auto, {names}.",
                    name=requested,
                    did_you_mean=did_you_mean(requested, list(known)),
                    names=", ".join(known),
                )
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
    """How a backend stores 4 bits where the user did not choose, and why: affine groups where it has them, else NF4."""
    for gap in backend.gaps():
        if (gap.setting, gap.value) == ("model.quantisation", "affine"):
            return "nf4", gap.reason
    return "affine", msg(
        "it is faster on {backend}; --quantisation nf4 works on every backend",
        backend=backend.name,
    )


def _rank(backend: Backend) -> tuple[int, str]:
    """Metal by MLX first, then CUDA, then torch's CPU, then MLX's CPU build, which is for checking only."""
    kind = backend.devices()[0].kind
    return {"metal": 0, "cuda": 1, "cpu": 2 if backend.name == "torch" else 3}.get(kind, 4), backend.name
