"""A loaded base with its adapters on MLX: the arithmetic of a session. The rest is in session_base.py."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence

import mlx.core as mx
import numpy as np

from finetune_local.backend import Decoder, Device, MemoryUse, StepRequest, StepResult
from finetune_local.spec.batch import Batch, Floats, ValueKind
from finetune_local.spec.numerics.shifted import one_group
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import Precision, TrainingSettings
from finetune_local.spec.value_head import VALUE_HEAD
from finetune_local.system.errors import Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.mlx import kernels, memory
from finetune_local_backends.mlx.base.model import Model, noisy
from finetune_local_backends.mlx.decoder import MlxDecoder
from finetune_local_backends.mlx.device import GAPS
from finetune_local_backends.mlx.layers.wrapped import SplitLayer
from finetune_local_backends.mlx.ops import OPS
from finetune_local_backends.mlx.training.optimizer import AdamW, writing
from finetune_local_backends.mlx.training.passes import Pass, norm_of, numbered
from finetune_local_backends.mlx.training.shifted import check_known, shifted
from finetune_local_backends.mlx.tuners import MlxAdapter
from finetune_local_backends.mlx.tuners.low_rank import update_sizes
from finetune_local_backends.multi_adapter import joined
from finetune_local_backends.readout import Part, Positions, losses, parts_of, positions
from finetune_local_backends.session_base import SessionBase, Training, check_optimizer
from finetune_local_backends.virtual import row_with

_LOGITS_BYTES = 64 << 20
_CACHE_BYTES = 1 << 30


class MlxSession(SessionBase[MlxAdapter, AdamW]):
    """See Session."""

    split_layer = SplitLayer

    def __init__(self, model: Model, precision: Precision, device: Device) -> None:
        super().__init__(precision, device, model.config, len(model.blocks()))
        self.model = model
        self._meter = memory.Meter(device)
        self._pass: Pass | None = None

    def logits(self, ids: Sequence[int]) -> Floats:
        """See Session."""
        virtual = self.virtual()
        row = row_with(ids, self.model.vocabulary, virtual) if virtual.count else list(ids)
        self.model.check_length(len(row))
        with self._guard(msg("read {tokens} tokens at once", tokens=len(ids))):
            logits = self.model.module(mx.array([row], mx.int32))[0, virtual.count :].astype(mx.float32)
            mx.eval(logits)
        return np.array(logits)

    def memory(self) -> MemoryUse:
        """See Session."""
        return self._meter.use()

    @property
    def _vocabulary(self) -> int:
        return self.model.vocabulary

    @property
    def _embedding_width(self) -> int:
        return self.model.width

    @property
    def _embedding_scale(self) -> float:
        return self.model.embedding_scale

    def _guard(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return memory.guard(doing)

    def _attach(self, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> MlxAdapter:
        module = importlib.import_module(f"finetune_local_backends.mlx.tuners.{plan.tuner}")
        adapter: MlxAdapter = module.attach(self.model, plan, tensors)
        return adapter

    def _parameter(self, array: Floats) -> mx.array:
        return mx.array(np.asarray(array, np.float32))

    def _numpy(self, parameter: mx.array) -> Floats:
        return np.array(parameter)

    def _write(self, adapter: MlxAdapter, name: str, array: Floats) -> None:
        adapter.parameters[name] = self._parameter(array)

    def _dense(self, name: str) -> Floats:
        return np.array(self.model.dense(name))

    def _check_trainable(self, training: TrainingSettings, shifted: bool) -> None:
        check_optimizer(GAPS, training.optimizer, self.device.kind)
        if self._logits_width < 1:
            raise Unsupported(msg("this model has no head that computes logits."))
        if shifted:
            check_known(self.model)

    def _optimizer(
        self, trained: Mapping[str, mx.array], training: TrainingSettings, multipliers: Mapping[str, float]
    ) -> AdamW:
        return AdamW(trained, training, multipliers)

    def _prepared(self, training: Training[AdamW]) -> None:
        # The gradient of every matrix needs at least its input saved; of checkpointed blocks only one at a time.
        adapter = self._adapters[training.name]
        trained = [adapter.parameters[name] for name in training.trained]
        kept = sum(p.shape[-1] for p in trained if p.ndim > 1)
        blocks = sum(block is not None for block in adapter.used())
        share = max(1, blocks) if training.settings.gradient_checkpointing else 1
        size = sum(p.nbytes for p in trained)
        self._meter.expect((4 if self.precision == "fp32" else 2) * kept / share, 2 * size + 5 * _LOGITS_BYTES)

    def _attending(self, group: int) -> contextlib.AbstractContextManager[None]:
        return shifted(self.model, group)

    @contextlib.contextmanager
    def _computing(self, work: Sequence[Training[AdamW]], requests: Sequence[StepRequest]) -> Iterator[None]:
        keys = mx.random.split(mx.random.key(self._seed), max(len(request.batches) for request in requests))
        adapters = [(self._adapters[training.name], training.trained) for training in work]
        checkpointing = any(training.settings.gradient_checkpointing for training in work)
        with self._activated(work) as rows, shifted(self.model, one_group([t.settings for t in work])):
            self._pass = one = Pass(adapters, rows, checkpointing, list(keys))
            try:
                yield
            finally:
                self._pass = None
                one.no_dropout()
                one.place_own()

    def _backward(self, requests: Sequence[StepRequest], present: Sequence[tuple[int, Batch]]) -> list[float]:
        one = self._pass
        assert one is not None, "a step is being computed"
        batch, one.rows.slices = joined([own for _, own in present])
        one.rows.owners, one.rows.total = [number for number, _ in present], len(batch.ids)
        one.next_dropout()
        whole, noise = self._with_virtual(batch), self._noise(requests, present, batch)
        loss = functools.partial(self._loss, one, parts_of(requests, present), whole, noise)
        with self._meter.batch(whole.ids.size):
            (_, found), gradients = mx.value_and_grad(loss)(one.trained())
            mx.eval(found, gradients)
        one.add(gradients)
        one.penalty_due = False
        del gradients
        mx.eval(one.gradients)
        memory.trim(_CACHE_BYTES)
        return [float(np.array(value)) / self.ensemble_size for value in found]

    def _loss(
        self,
        one: Pass,
        parts: Sequence[Part],
        batch: Batch,
        noise: Floats | None,
        parameters: kernels.Tree,
    ) -> tuple[mx.array, list[mx.array]]:
        """The sum of the parts' losses, with the tuners' regularisation if it is due, and the losses without it."""
        kinds = {part.number: part.objective.value_kind for part in parts}
        at = positions(batch, ("row values" if "row values" in kinds.values() else None))

        def head(outside: kernels.Tree, hidden: mx.array) -> mx.array:
            one.place(outside)
            return self.model.head(hidden)

        def values(number: int, tokens: slice, rows: slice) -> mx.array | None:
            if kinds[number] is None:
                return None
            hidden = at_tokens[tokens] if kinds[number] == "token values" else at_rows[rows]
            return _scalars(hidden, parameters[numbered(number, VALUE_HEAD)])

        one.place(parameters)
        with self._checkpointing(one, parameters), noisy(self.model, noise):
            at_tokens, at_rows, targets = self._read(batch, at)
        outside = {name: parameters[name] for name in one.outside}
        logprobs = kernels.chunked_logprobs(head, outside, at_tokens, targets, self._logits_rows())
        found = losses(OPS, parts, self.ensemble_size, logprobs, values)
        value = mx.stack(found).sum()
        penalty = one.penalty(parameters) if one.penalty_due else None
        return value if penalty is None else value + penalty, found

    def _apply(
        self, work: Sequence[Training[AdamW]], requests: Sequence[StepRequest], losses: Sequence[float]
    ) -> list[StepResult]:
        one = self._pass
        if one is None or not one.gradients:  # no batch has a supervised token
            return [StepResult(0.0, 0.0) for _ in work]
        one.no_dropout()
        with writing([(training, self._adapters[training.name]) for training in work], self._meter.free()):
            return [
                self._update(training, request.learning_rate, loss, one.take(number))
                for number, (training, request, loss) in enumerate(zip(work, requests, losses, strict=True))
            ]

    def _update(
        self, training: Training[AdamW], learning_rate: float, loss: float, gradients: dict[str, mx.array]
    ) -> StepResult:
        """Clip and apply one adapter's gradients, unless something is not a finite number."""
        norm = norm_of(gradients)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return StepResult(loss, norm)
        adapter = self._adapters[training.name]
        limit = training.settings.max_gradient_norm
        factor = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
        seen = {name: np.array(g * factor) for name, g in gradients.items()} if training.tracker else {}
        training.optimizer.update(adapter.parameters, gradients, factor, learning_rate)
        self._track(training, seen)
        adapter.after_step()
        return StepResult(loss, norm)

    def _logprobs(self, batch: Batch) -> Floats:
        hidden, _, targets = self._read(batch, positions(batch))
        rows, found = self._logits_rows(), []
        for start in range(0, hidden.shape[0], rows):
            part = kernels.logprobs(self.model.head, hidden[start : start + rows], targets[start : start + rows])
            mx.eval(part)
            found.append(np.array(part))
        return np.concatenate(found).astype(np.float32)

    def _values(self, batch: Batch, kind: ValueKind, head: mx.array) -> Floats:
        at_tokens, at_rows, _ = self._read(batch, positions(batch, kind))
        found = _scalars(at_tokens if kind == "token values" else at_rows, head)
        mx.eval(found)
        return np.array(found)

    def _update_sizes(self, adapter: MlxAdapter, batch: Batch) -> dict[str, float]:
        self.model.check_length(batch.ids.shape[1])
        return update_sizes(self.model, adapter, batch)

    def _decoder(self) -> Decoder:
        return MlxDecoder(self.model, self.virtual())

    def _checkpointing(self, one: Pass, parameters: kernels.Tree) -> contextlib.AbstractContextManager[None]:
        if not one.checkpointing:
            return contextlib.nullcontext()
        # Blocks before the first trained one save nothing anyway, unless something before them (a prompt) is trained.
        first = 0 if one.outside else min(one.blocks, default=0)
        blocks = {n: block for n, block in enumerate(self.model.blocks()) if n >= first}
        trained = {n: {name: parameters[name] for name in one.blocks.get(n, [])} for n in blocks}
        return kernels.Checkpointing(blocks, trained.__getitem__, one.place)

    def _read(self, batch: Batch, at: Positions) -> tuple[mx.array, mx.array, mx.array]:
        """Hidden states (n, width) before the supervised tokens, those of the rows' ends with "row values", and the tokens (n,).

        Padding is on the right, so that under the causal mask no real token sees it and no padding mask is needed.
        """
        self.model.check_length(min(at.width + 1, batch.ids.shape[1]))
        hidden = self.model.hidden(mx.array(batch.ids[:, : at.width].astype(np.int32)))
        flat = hidden.reshape(-1, hidden.shape[-1])
        at_tokens = flat[mx.array(at.tokens.astype(np.int32))]
        at_rows = flat[mx.array(at.rows.astype(np.int32))] if len(at.rows) else mx.zeros((0, hidden.shape[-1]))
        return at_tokens, at_rows, mx.array(at.targets.astype(np.int32))

    def _logits_rows(self) -> int:
        """How many positions' logits are in memory at once."""
        return max(1, _LOGITS_BYTES // (4 * self._logits_width))

    @functools.cached_property
    def _logits_width(self) -> int:
        """The head's width. Body and head apart must give the model's own logits; checked once per model."""
        ids = mx.array([[1, 2, 3]], mx.int32)
        whole = self.model.module(ids).astype(mx.float32)
        apart = self.model.head(self.model.hidden(ids)).astype(mx.float32)
        if whole.shape != apart.shape or not bool(mx.allclose(whole, apart, rtol=1e-4, atol=1e-4).item()):
            raise Unsupported(
                msg("MLX's class for this model computes its logits in a way that cannot be trained here yet.")
            )
        return int(whole.shape[-1])


def _scalars(hidden: mx.array, head: mx.array) -> mx.array:
    """Hidden states (n, width) times a scalar head (1, width): (n,) fp32."""
    return hidden.astype(mx.float32) @ head[0]
