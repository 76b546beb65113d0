"""A loaded model with its adapters on MLX: attach, step, score, decode. See finetune_local.backend.Session."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from finetune_local.backend import Batch, Decoder, Device, Floats, MemoryUse, StepRequest, StepResult
from finetune_local.spec.numerics.shifted import check_shifted, group_of, one_group
from finetune_local.spec.objectives import Objective
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import Precision, TrainingSettings
from finetune_local.spec.tuners import Source, trainable_parameters, tuner_of
from finetune_local.system.errors import AdapterError, Unsupported
from finetune_local_backends.mlx import kernels, memory
from finetune_local_backends.mlx.decoder import MlxDecoder
from finetune_local_backends.mlx.gaps import GAPS
from finetune_local_backends.mlx.measure import update_sizes
from finetune_local_backends.mlx.model import Model
from finetune_local_backends.mlx.noisy import noisy
from finetune_local_backends.mlx.ops import OPS
from finetune_local_backends.mlx.optimizer import AdamW, State
from finetune_local_backends.mlx.passes import Pass, Training, norm_of
from finetune_local_backends.mlx.shifted import check_known, shifted
from finetune_local_backends.mlx.tuners import Adapter, check_tensors
from finetune_local_backends.mlx.tuners.sites import SiteAdapter
from finetune_local_backends.mlx.tuners.split import SplitAdapter, own
from finetune_local_backends.mlx.undo import writing
from finetune_local_backends.noise import batch_noise
from finetune_local_backends.together import check_plans, joined, rounds
from finetune_local_backends.virtual import VirtualContext, batch_with, mean_over_ensemble, row_with
from finetune_local_backends.windows import windows

TRACKER = "tracker:"
_LOGITS_BYTES = 64 << 20
_CACHE_BYTES = 1 << 30


class MlxSession(VirtualContext):
    """See Session."""

    def __init__(self, model: Model, precision: Precision, device: Device) -> None:
        self.precision = precision
        self.device = device
        self.model = model
        self._adapters: dict[str, Adapter] = {}
        self._plans: dict[str, AdapterPlan] = {}
        self._active: str | None = None
        self._trainings: dict[str, Training] = {}
        self._seed = 0
        self._meter = memory.Meter(device)

    def attach(
        self,
        name: str,
        plan: AdapterPlan,
        seed: int,
        tensors: Mapping[str, Floats] | None = None,
        ids: Callable[[str], list[int]] | None = None,
        stored: Callable[[str], Floats] | None = None,
    ) -> int:
        """See Session."""
        method = importlib.import_module(f"finetune_local_backends.mlx.tuners.{plan.tuner}")
        if name in self._adapters:
            raise AdapterError(f"an adapter called '{name}' is in memory already. Detach it first.")
        tuner = tuner_of(plan)
        if tensors is not None:
            check_tensors(tensors, tuner.shapes(plan))
        self.activate(None)  # what is derived from the base must see the base
        with memory.guard("the adapter"):
            source = Source(self.weight, ids, self.model.embedding_scale, stored)
            given = tuner.initial(plan, seed, source) if tensors is None else tensors
            adapter: Adapter = method.attach(self.model, plan, given)
        self._adapters[name], self._plans[name] = adapter, plan
        self.activate(name)
        return trainable_parameters(plan)

    def detach(self, name: str) -> None:
        """See Session."""
        adapter = self._adapter(name)
        if self._active == name:
            self.activate(None)
        self._trainings.pop(name, None)
        adapter.remove()
        del self._adapters[name], self._plans[name]

    def adapters(self) -> list[str]:
        """See Session."""
        return list(self._adapters)

    @property
    def active(self) -> str | None:
        """The adapter that computes."""
        return self._active

    def activate(self, name: str | None) -> None:
        """See Session."""
        adapter = None if name is None else self._adapter(name)
        if self._active is not None:
            self._adapters[self._active].withdraw()
        if adapter is not None:
            adapter.place(adapter.parameters)
        self._active = name

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Compute with another adapter for a while."""
        before = self._active
        if name != before:
            self.activate(name)
        try:
            yield
        finally:
            if name != before:
                self.activate(before)

    def weight(self, name: str) -> Floats:
        """See Session."""
        with self.using(None):  # a full adapter computes in the base's own places
            return np.array(self.model.dense(name))

    def tensors(self, name: str) -> dict[str, Floats]:
        """See Session."""
        return self._adapter(name).tensors()

    def prepare(self, name: str, training: TrainingSettings) -> None:
        """See Session. Raises Unsupported where the optimizer or the model's head is not known here."""
        adapter = self._adapter(name)
        for gap in GAPS:
            if gap.setting == "training.optimizer" and gap.value == training.optimizer:
                raise Unsupported(f"--optimizer {training.optimizer}: {gap.reason}. Use --optimizer {gap.instead}.")
        if self._vocabulary < 1:
            raise Unsupported("this model has no head that gives logits.")
        plan = self._plans[name]
        check_shifted(plan, training, windows(self.model.config, len(self.model.blocks())))
        if group_of(training):
            check_known(self.model)
        tuner = tuner_of(plan)
        lr_multipliers = tuner.lr_multipliers(plan)
        trained = {n: p for n, p in adapter.parameters.items() if lr_multipliers.get(n, 1.0)}
        tracker = tuner.tracker(plan, training.max_steps or 1)
        state = Training(name, training, AdamW(trained, training, lr_multipliers), tracker, list(trained))
        self._trainings.pop(name, None)
        self._trainings[name] = state
        # At the least, the gradient of every matrix needs its input kept; of checkpointed blocks only one at a time.
        kept = sum(p.shape[-1] for p in trained.values() if p.ndim > 1)
        blocks = sum(block is not None for block in adapter.used())
        request = max(1, blocks) if training.gradient_checkpointing else 1
        size = sum(p.nbytes for p in trained.values())
        self._meter.expect((4 if self.precision == "fp32" else 2) * kept / request, 2 * size + 5 * _LOGITS_BYTES)

    def seed(self, seed: int) -> None:
        """See Session."""
        self._seed = seed

    def step(self, batches: Sequence[Batch], objective: Objective, learning_rate: float) -> StepResult:
        """See Session."""
        return self.step_many([StepRequest(self._ready().name, batches, objective, learning_rate)])[0]

    def step_many(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        """See Session."""
        work = [self._ready(request.name) for request in requests]
        keys = iter(mx.random.split(mx.random.key(self._seed), max(len(request.batches) for request in requests)))
        found: dict[str, mx.array] = {}
        losses = [0.0] * len(requests)
        first = True
        group = one_group([training.settings for training in work])
        with self._computing(work) as one, shifted(self.model, group), memory.guard("this batch"):
            try:
                for present in rounds(requests):
                    one.adapter.dropout(next(keys))
                    values, gradients = self._gradients(one, requests, present, first)
                    found = {n: found[n] + g if n in found else g for n, g in (found | gradients).items()}
                    del gradients
                    mx.eval(found)
                    first = False
                    for (number, _), value in zip(present, values, strict=True):
                        losses[number] += value
                    memory.trim(_CACHE_BYTES)
            finally:
                one.adapter.dropout(None)
            if not found:  # no batch has a supervised token
                return [StepResult(0.0, 0.0) for _ in requests]
            several = len(work) > 1
            with writing([(t, self._adapter(t.name)) for t in work], self._meter.free()):
                return [
                    self._update(t, request, loss, {n: found.pop(own(number, n) if several else n) for n in t.trained})
                    for number, (t, request, loss) in enumerate(zip(work, requests, losses, strict=True))
                ]

    def _update(
        self, training: Training, request: StepRequest, loss: float, gradients: dict[str, mx.array]
    ) -> StepResult:
        """Clip and apply one adapter's gradients, unless something is not a finite number."""
        norm = norm_of(gradients)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return StepResult(loss, norm)
        adapter = self._adapter(training.name)
        limit = training.settings.max_gradient_norm
        factor = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
        seen = {n: np.array(g * factor) for n, g in gradients.items()} if training.tracker else {}
        training.optimizer.update(adapter.parameters, gradients, factor, request.learning_rate)
        self._track(training, seen)
        adapter.changed()
        return StepResult(loss, norm)

    @contextlib.contextmanager
    def _computing(self, work: Sequence[Training]) -> Iterator[Pass]:
        """Within it one adapter computes, as usual, or several do, each for its own rows."""
        checkpointing = any(training.settings.gradient_checkpointing for training in work)
        if len(work) == 1:
            with self.using(work[0].name):
                adapter = self._adapter(work[0].name)
                try:
                    yield Pass(adapter, work[0].trained, checkpointing)
                finally:
                    adapter.place(adapter.parameters)
            return
        check_plans([self._plans[training.name] for training in work])
        with self.using(None):
            split = SplitAdapter([cast(SiteAdapter, self._adapter(training.name)) for training in work])
            names = [own(number, name) for number, training in enumerate(work) for name in training.trained]
            try:
                yield Pass(split, names, checkpointing)
            finally:
                split.place(split.parameters)  # no traced arrays stay in the slots
                split.withdraw()

    def score(self, batch: Batch) -> Floats:
        """See Session."""
        if batch.supervised == 0:
            return np.zeros(0, np.float32)
        with memory.guard("scoring this batch"):
            hidden, targets = self._supervised(self._with_virtual(batch))
            rows = self._rows()
            parts = []
            for start in range(0, hidden.shape[0], rows):
                part = kernels.logprobs(self.model.head, hidden[start : start + rows], targets[start : start + rows])
                mx.eval(part)
                parts.append(np.array(part))
        return mean_over_ensemble(np.concatenate(parts).astype(np.float32), self.virtual().ensemble_size)

    def update_sizes(self, batch: Batch) -> dict[str, float]:
        """See Session."""
        adapter = self._adapter(self._active or "")
        self.check_length(batch.ids.shape[1])
        with memory.guard("the sizes of updates"):
            return update_sizes(self.model, adapter, batch) if isinstance(adapter, SiteAdapter) else {}

    def logits(self, ids: Sequence[int]) -> Floats:
        """See Session."""
        virtual = self.virtual()
        row = row_with(ids, self.model.vocabulary, virtual) if virtual.count else list(ids)
        self.check_length(len(row))
        with memory.guard("the logits"):
            logits = self.model.module(mx.array([row], mx.int32))[0, virtual.count :].astype(mx.float32)
            mx.eval(logits)
        return np.array(logits)

    def decoder(self) -> Decoder:
        """See Session."""
        return MlxDecoder(self)

    def optimizer_state(self, name: str | None = None) -> State:
        """See Session."""
        training = self._ready(name)
        tracked = training.tracker.state() if training.tracker else {}
        return training.optimizer.state() | {TRACKER + name: np.array(value) for name, value in tracked.items()}

    def restore_optimizer(self, state: Mapping[str, npt.NDArray[np.generic]], name: str | None = None) -> None:
        """See Session."""
        training = self._ready(name)
        tracked = [name for name in state if training.tracker and name.startswith(TRACKER)]
        training.optimizer.restore({name: value for name, value in state.items() if name not in tracked})
        if training.tracker:
            training.tracker.restore({name.removeprefix(TRACKER): state[name] for name in tracked})

    def memory(self) -> MemoryUse:
        """See Session."""
        return self._meter.use()

    def check_length(self, length: int) -> None:
        """Raise Unsupported where a text is longer than mlx-lm's class computes rightly."""
        if self.model.longest is not None and length > self.model.longest:
            raise Unsupported(
                f"a text of {length} tokens is longer than this model's sliding window of {self.model.longest}, which "
                "MLX's class for it does not have. Lower --max-length or use --backend torch."
            )

    def _gradients(
        self, one: Pass, requests: Sequence[StepRequest], present: list[tuple[int, Batch]], penalised: bool
    ) -> tuple[list[float], dict[str, mx.array]]:
        """The loss of each micro-batch of the pass, and the gradients; prompts of an ensemble each get their own, and the mean loss."""
        batch, slices = joined([batch for _, batch in present])
        whole, ensemble_size = self._with_virtual(batch), self.virtual().ensemble_size
        alphas = [self._ready(requests[n].name).settings.neftune_alpha for n, part in present for _ in part.ids]
        noise = batch_noise(batch, alphas, self._seed, self.model.width, self.virtual())
        if isinstance(one.adapter, SplitAdapter):
            rows = one.adapter.rows
            rows.slices, rows.owners, rows.total = slices, [number for number, _ in present], len(batch.ids)
        ends = np.cumsum([ensemble_size * batch.supervised for _, batch in present])[:-1].tolist()

        def loss(parameters: kernels.Tree) -> tuple[mx.array, list[mx.array]]:
            def head(outside: kernels.Tree, hidden: mx.array) -> mx.array:
                one.adapter.place(outside)
                return self.model.head(hidden)

            one.adapter.place(parameters)
            with self._checkpointing(one, parameters), noisy(self.model, noise):
                hidden, targets = self._supervised(whole)
            outside = {name: parameters[name] for name in one.outside}
            found = kernels.chunked_logprobs(head, outside, hidden, targets, self._rows())
            values: list[mx.array] = []
            for part, (number, own_batch) in zip(mx.split(found, ends), present, strict=True):
                request = requests[number]
                total = float(sum(other.supervised for other in request.batches))
                each = [request.objective.loss(OPS, p, own_batch, total) for p in mx.split(part, ensemble_size)]
                values.append(mx.stack(each).sum())
            value = mx.stack(values).sum()
            penalty = one.adapter.penalty(parameters) if penalised else None
            return value if penalty is None else value + penalty, values

        own_parameters = one.adapter.parameters
        trained = {name: own_parameters[name] for name in one.trained}
        with self._meter.batch(whole.ids.size):
            (_, told), gradients = mx.value_and_grad(loss)(trained)
            mx.eval(told, gradients)
        return [float(np.array(value)) / ensemble_size for value in told], gradients

    def _track(self, training: Training, gradients: Mapping[str, Floats]) -> None:
        """Let the family change its tensors between two steps."""
        if training.tracker is None:
            return
        parameters = self._adapter(training.name).parameters
        now = {name: np.array(parameters[name]) for name in training.trained}
        for name, value in training.tracker.update(now, gradients).items():
            parameters[name] = mx.array(np.asarray(value, np.float32))

    def _with_virtual(self, batch: Batch) -> Batch:
        """The batch as the active adapter has it read."""
        virtual = self.virtual()
        return batch_with(batch, self.model.vocabulary, virtual) if virtual.count else batch

    def _checkpointing(self, one: Pass, parameters: kernels.Tree) -> contextlib.AbstractContextManager[None]:
        if not one.checkpointing:
            return contextlib.nullcontext()
        # Blocks before the first trained one keep nothing anyway, unless something before them (a prompt) is trained.
        first = 0 if one.outside else min(one.blocks, default=0)
        blocks = {n: block for n, block in enumerate(self.model.blocks()) if n >= first}
        trained = {n: {name: parameters[name] for name in one.blocks.get(n, [])} for n in blocks}
        return kernels.Checkpointing(blocks, trained.__getitem__, one.adapter.place)

    def _supervised(self, batch: Batch) -> tuple[mx.array, mx.array]:
        """Hidden states (n, width) that predict the supervised tokens, and those tokens (n,), in row-major order.

        Padding is on the right, so that under the causal mask no real token sees it and no mask of its own is needed.
        """
        rows, columns = np.nonzero(batch.mask)
        length = int(columns.max())  # nothing after the last supervised token changes the loss
        self.check_length(length + 1)
        hidden = self.model.hidden(mx.array(batch.ids[:, :length].astype(np.int32)))
        flat = hidden.reshape(-1, hidden.shape[-1])
        where = mx.array((rows * length + columns - 1).astype(np.int32))
        return flat[where], mx.array(batch.ids[rows, columns].astype(np.int32))

    def _rows(self) -> int:
        """How many positions' logits are held at once."""
        return max(1, _LOGITS_BYTES // (4 * self._vocabulary))

    @functools.cached_property
    def _vocabulary(self) -> int:
        """The head's width. Body and head apart must give the model's own logits; looked at once per model."""
        ids = mx.array([[1, 2, 3]], mx.int32)
        whole = self.model.module(ids).astype(mx.float32)
        apart = self.model.head(self.model.hidden(ids)).astype(mx.float32)
        if whole.shape != apart.shape or not bool(mx.allclose(whole, apart, rtol=1e-4, atol=1e-4).item()):
            raise Unsupported(
                "MLX's class for this model computes its logits in a way that cannot be trained here yet."
            )
        return int(whole.shape[-1])

    def _ready(self, name: str | None = None) -> Training:
        """What prepare() made for an adapter, or for the last one."""
        if not self._trainings or (name is not None and name not in self._trainings):
            raise RuntimeError("step() and the optimizer need prepare() first")
        return self._trainings[name or next(reversed(self._trainings))]

    def _adapter(self, name: str) -> Adapter:
        if name not in self._adapters:
            raise AdapterError(f"no adapter '{name}' is in memory. In memory: {', '.join(self._adapters) or 'none'}.")
        return self._adapters[name]
