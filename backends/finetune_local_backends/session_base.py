"""What the sessions of all backends share: names, plans, active adapters, prepared trainings, and the order of a step.

A backend's session adds the arithmetic. The public methods are documented in finetune_local.backend.Session.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from finetune_local.backend import Decoder, Device, Gap, StepRequest, StepResult
from finetune_local.spec.base.config import windows
from finetune_local.spec.batch import Batch, Floats, ValueKind
from finetune_local.spec.numerics.shifted import check_shifted, group_of
from finetune_local.spec.objectives import Objective
from finetune_local.spec.run import Precision, TrainingSettings
from finetune_local.spec.tuners import Tracker, tuner_of
from finetune_local.spec.value_head import VALUE_HEAD
from finetune_local.system.errors import AdapterError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.adapter import LayeredAdapter
from finetune_local_backends.attached import Attached, AttachedAdapters
from finetune_local_backends.multi_adapter import Rows, SplitLayer, check_plans, rounds, rows_split
from finetune_local_backends.virtual import batch_noise, batch_with, mean_over_ensemble

TRACKER = "tracker:"
"""Prefix of a tracker's entries in an optimizer's saved state."""

State = dict[str, npt.NDArray[np.generic]]


class Optimizer(Protocol):
    """What both backends' optimizers have in common."""

    def state(self) -> State:
        """Every state, as named arrays."""
        ...

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Restore what state() returned. Raises AdapterError and changes nothing if it does not fit."""
        ...


Optimizes = TypeVar("Optimizes", bound=Optimizer)


@dataclass
class Training(Generic[Optimizes]):
    """What prepare() created for one adapter; `trained` are the names of its trained parameters, in the optimizer's order."""

    name: str
    settings: TrainingSettings
    optimizer: Optimizes
    trained: tuple[str, ...]
    tracker: Tracker | None


class SessionBase(AttachedAdapters[Attached], Generic[Attached, Optimizes]):
    """See Session."""

    split_layer: Callable[[Any, Rows], SplitLayer]
    """The backend's SplitLayer."""

    def __init__(self, precision: Precision, device: Device, config: Mapping[str, Any], blocks: int) -> None:
        """`config` is the text part of the base's config, `blocks` its number of layers."""
        super().__init__(config)
        self.precision, self.device = precision, device
        self._blocks = blocks
        self._trainings: dict[str, Training[Optimizes]] = {}
        self._seed = 0

    def detach(self, name: str) -> None:
        """See Session."""
        super().detach(name)
        self._trainings.pop(name, None)

    # Training

    def prepare(self, name: str, training: TrainingSettings) -> None:
        """See Session. Raises Unsupported if the optimizer or the base's head is not supported."""
        adapter, plan = self._adapter(name), self._plans[name]
        tuner = tuner_of(plan)
        multipliers = tuner.lr_multipliers(plan)
        trained = {key: value for key, value in adapter.parameters.items() if multipliers.get(key, 1.0)}
        check_shifted(plan, training, windows(self._config, self._blocks))
        self._check_trainable(training, shifted=bool(group_of(training)))
        with self._guard(msg("store the optimizer's states")):
            optimizer = self._optimizer(trained, training, multipliers)
        tracker = tuner.tracker(plan, training.max_steps or 1)
        self._trainings.pop(name, None)
        self._trainings[name] = Training(name, training, optimizer, tuple(trained), tracker)
        self._prepared(self._trainings[name])

    def seed(self, seed: int) -> None:
        """See Session."""
        self._seed = seed

    def step(self, batches: Sequence[Batch], objective: Objective, learning_rate: float) -> StepResult:
        """See Session."""
        return self.step_many([StepRequest(self._ready().name, batches, objective, learning_rate)])[0]

    def step_many(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        """See Session."""
        work = [self._ready(request.name) for request in requests]
        requests = [self._with_reference(request) for request in requests]
        losses = [0.0] * len(requests)
        largest = sum(max((batch.ids.size for batch in request.batches), default=0) for request in requests)
        with self._guard(msg("train on {tokens} tokens at once", tokens=largest)), self._computing(work, requests):
            for present in rounds(requests):
                for (number, _), loss in zip(present, self._backward(requests, present), strict=True):
                    losses[number] += loss
            return self._apply(work, requests, losses)

    def optimizer_state(self, name: str | None = None) -> State:
        """See Session."""
        training = self._ready(name)
        tracked = training.tracker.state() if training.tracker else {}
        return training.optimizer.state() | {TRACKER + key: np.array(value) for key, value in tracked.items()}

    def restore_optimizer(self, state: Mapping[str, npt.NDArray[np.generic]], name: str | None = None) -> None:
        """See Session."""
        training = self._ready(name)
        tracked = [key for key in state if training.tracker and key.startswith(TRACKER)]
        training.optimizer.restore({key: value for key, value in state.items() if key not in tracked})
        if training.tracker:
            training.tracker.restore({key.removeprefix(TRACKER): state[key] for key in tracked})

    def _ready(self, name: str | None = None) -> Training[Optimizes]:
        """The training that prepare() created for an adapter, by default the last one."""
        if not self._trainings or (name is not None and name not in self._trainings):
            raise RuntimeError("prepare() comes before training")
        return self._trainings[name or next(reversed(self._trainings))]

    @contextmanager
    def _activated(self, work: Sequence[Training[Optimizes]]) -> Iterator[Rows]:
        """Within this context one adapter is active, or several are, each for its rows."""
        if len(work) == 1:
            with self.using(work[0].name):
                yield Rows()
            return
        check_plans([self._plans[training.name] for training in work])
        layered = [cast(LayeredAdapter[Any, Any], self._adapters[training.name]) for training in work]
        with self.using(None), rows_split(layered, self.split_layer) as rows:
            yield rows

    def _with_reference(self, request: StepRequest) -> StepRequest:
        """The request, with the reference's log-probabilities added to every micro-batch if its objective needs them."""
        if "reference" not in request.objective.needs:
            return request
        # With the step's attention: otherwise margins would measure the effect of LongLoRA's groups, not of training.
        group = group_of(self._ready(request.name).settings)
        batches = [
            batch if batch.reference is not None else replace(batch, reference=self.score(batch, True, group))
            for batch in request.batches
        ]
        return replace(request, batches=batches)

    def _noise(
        self, requests: Sequence[StepRequest], present: Sequence[tuple[int, Batch]], batch: Batch
    ) -> Floats | None:
        """NEFTune's noise for micro-batches that are computed in one pass as `batch`."""
        alphas = [self._ready(requests[n].name).settings.neftune_alpha for n, part in present for _ in part.ids]
        return batch_noise(batch, alphas, self._seed, self._embedding_width, self.virtual())

    def _track(self, training: Training[Optimizes], gradients: Mapping[str, Floats]) -> None:
        """Let the tuner change its tensors between two steps (AdaLoRA's budget), given the gradients that were applied."""
        if training.tracker is None:
            return
        adapter = self._adapters[training.name]
        own = [key for key in training.trained if key != VALUE_HEAD]
        now = {key: self._numpy(adapter.parameters[key]) for key in own}
        for key, value in training.tracker.update(now, {k: g for k, g in gradients.items() if k in now}).items():
            self._write(adapter, key, value)

    # Reading

    def score(self, batch: Batch, reference: bool = False, group: int = 0) -> Floats:
        """See Session."""
        if reference and self._active:
            with self.using(None):
                return self.score(batch, group=group)
        if not batch.supervised:
            return np.zeros(0, np.float32)
        with self._guard(msg("score {tokens} tokens at once", tokens=batch.ids.size)), self._attending(group):
            return mean_over_ensemble(self._logprobs(self._with_virtual(batch)), self.ensemble_size)

    def values(self, batch: Batch, kind: ValueKind) -> Floats:
        """See Session."""
        name = next(iter(self._active), "")
        if len(self._active) != 1 or VALUE_HEAD not in self._adapter(name).parameters:
            raise AdapterError(
                msg("no adapter with a value head is active. Attach an adapter that was trained as a reward model.")
            )
        if not (batch.supervised if kind == "token values" else len(batch.ids)):
            return np.zeros(0, np.float32)
        with self._guard(msg("score {tokens} tokens at once", tokens=batch.ids.size)):
            found = self._values(self._with_virtual(batch), kind, self._adapters[name].parameters[VALUE_HEAD])
        return mean_over_ensemble(found, self.ensemble_size)

    def update_sizes(self, batch: Batch) -> dict[str, float]:
        """See Session."""
        adapter = self._adapter(next(iter(self._active), ""))
        with self._guard(msg("measure updates of {tokens} tokens at once", tokens=batch.ids.size)):
            return self._update_sizes(adapter, batch)

    def decoder(self) -> Decoder:
        """See Session."""
        return _Bound(self, dict(self._active), self._decoder())

    def _with_virtual(self, batch: Batch) -> Batch:
        """The batch with the active adapter's virtual tokens."""
        virtual = self.virtual()
        return batch_with(batch, self._vocabulary, virtual) if virtual.count else batch

    # Implemented by a backend

    @property
    @abstractmethod
    def _vocabulary(self) -> int:
        """Rows of the embedding; ids from here on are virtual tokens."""

    @abstractmethod
    def _numpy(self, parameter: Any) -> Floats:
        """A copy of a parameter, fp32."""

    @abstractmethod
    def _write(self, adapter: Attached, name: str, array: Floats) -> None:
        """Overwrite a parameter's values."""

    @abstractmethod
    def _check_trainable(self, training: TrainingSettings, shifted: bool) -> None:
        """Raise Unsupported if this base or these settings cannot be trained; `shifted`: with shifted attention."""

    @abstractmethod
    def _optimizer(
        self, trained: Mapping[str, Any], training: TrainingSettings, multipliers: Mapping[str, float]
    ) -> Optimizes:
        """An optimizer for these parameters; `multipliers` of the learning rate for those whose multiplier is not 1."""

    def _prepared(self, training: Training[Optimizes]) -> None:
        """Called at the end of prepare()."""

    @abstractmethod
    def _computing(
        self, work: Sequence[Training[Optimizes]], requests: Sequence[StepRequest]
    ) -> AbstractContextManager[None]:
        """Context of a step: one adapter is active, or several are, each for its rows, and gradients of their trained parameters accumulate.

        However the step ends, the gradients are dropped and the previous state is restored.
        """

    @abstractmethod
    def _backward(self, requests: Sequence[StepRequest], present: Sequence[tuple[int, Batch]]) -> list[float]:
        """The loss of each micro-batch of one pass; gradients are accumulated."""

    @abstractmethod
    def _apply(
        self, work: Sequence[Training[Optimizes]], requests: Sequence[StepRequest], losses: Sequence[float]
    ) -> list[StepResult]:
        """Clip and apply each adapter's gradients unless its loss or norm is not finite. All writes happen, or none."""

    @abstractmethod
    def _attending(self, group: int) -> AbstractContextManager[None]:
        """Within this context attention is computed in shifted groups of `group` positions; 0: full attention."""

    @abstractmethod
    def _logprobs(self, batch: Batch) -> Floats:
        """Log-probabilities (n,) of the n > 0 supervised tokens; `batch` includes virtual tokens."""

    @abstractmethod
    def _values(self, batch: Batch, kind: ValueKind, head: Any) -> Floats:
        """Outputs of a scalar head, (n,) at tokens or (rows,) at row ends."""

    @abstractmethod
    def _update_sizes(self, adapter: Attached, batch: Batch) -> dict[str, float]:
        """See update_sizes(); the adapter is active."""

    @abstractmethod
    def _decoder(self) -> Decoder:
        """A decoder that uses the active adapters."""


class _Bound:
    """A decoder that uses the adapters that were active when it was created."""

    def __init__(self, session: SessionBase[Any, Any], active: Mapping[str, float], decoder: Decoder) -> None:
        self._session, self._active, self._decoder = session, active, decoder

    def feed(self, rows: Sequence[Sequence[int]]) -> Floats:
        """See Decoder."""
        with self._session.using(self._active):
            return self._decoder.feed(rows)


def check_optimizer(gaps: Sequence[Gap], optimizer: str, kind: str) -> None:
    """Raise Unsupported if the backend lacks this optimizer on this kind of device."""
    for gap in gaps:
        if (gap.setting, gap.value) == ("training.optimizer", optimizer) and gap.device in ("", kind):
            raise Unsupported(
                msg(
                    "--optimizer {value}: {reason}. Use --optimizer {value2}.",
                    value=gap.value,
                    reason=gap.reason,
                    value2=gap.instead,
                )
            )
