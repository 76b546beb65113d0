"""A loaded base with its adapters on torch: the arithmetic of a session. The rest is in session_base.py."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from finetune_local.backend import Decoder, MemoryUse, StepRequest, StepResult
from finetune_local.spec.batch import Batch, Floats, ValueKind
from finetune_local.spec.numerics.shifted import one_group
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.value_head import VALUE_HEAD
from finetune_local.system.errors import ModelError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.multi_adapter import Rows, joined
from finetune_local_backends.readout import losses, parts_of, positions
from finetune_local_backends.session_base import SessionBase, Training, check_optimizer
from finetune_local_backends.torch import memory
from finetune_local_backends.torch.base.load import Base, noisy
from finetune_local_backends.torch.base.quantised import QuantisedLinear
from finetune_local_backends.torch.decoder import Head, TorchDecoder
from finetune_local_backends.torch.device import GAPS
from finetune_local_backends.torch.layers.wrapped import SplitLayer
from finetune_local_backends.torch.ops import TorchOps
from finetune_local_backends.torch.training.optimizer import Optimizer, Written, finite, writing
from finetune_local_backends.torch.training.shifted import check_known, shifted
from finetune_local_backends.torch.tuners import TorchAdapter, tensor
from finetune_local_backends.torch.tuners.low_rank import update_sizes
from finetune_local_backends.virtual import row_with


class TorchSession(SessionBase[TorchAdapter, Optimizer]):
    """See Session."""

    split_layer = SplitLayer

    def __init__(self, base: Base) -> None:
        text = base.model.config.get_text_config()
        super().__init__(base.precision, base.device, text.to_dict(), text.num_hidden_layers)
        self._base = base
        self._head = Head(base.model)
        self._ops = TorchOps(base.place)
        self._rows = Rows()

    def seed(self, seed: int) -> None:
        """See Session."""
        super().seed(seed)
        torch.manual_seed(seed)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Floats:
        """See Session. Uses the model's own forward pass, so it also verifies ours."""
        with self._guard(msg("read {tokens} tokens at once", tokens=len(ids))):
            virtual = self.virtual()
            whole = row_with(ids, self._base.vocabulary, virtual, 0)
            logits = self._base.model(input_ids=torch.tensor([whole], device=self._base.place), use_cache=False).logits
        result: Floats = logits[0, virtual.count :].float().cpu().numpy()
        return result

    def memory(self) -> MemoryUse:
        """See Session."""
        return memory.use(self._base.place)

    @property
    def _vocabulary(self) -> int:
        return self._base.vocabulary

    @property
    def _embedding_width(self) -> int:
        return int(self._base.model.get_input_embeddings().weight.shape[1])

    @property
    def _embedding_scale(self) -> float:
        return self._base.embedding_scale

    def _guard(self, doing: str) -> AbstractContextManager[None]:
        return memory.guard(doing)

    def _attach(self, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchAdapter:
        module = importlib.import_module(f"finetune_local_backends.torch.tuners.{plan.tuner}")
        adapter: TorchAdapter = module.attach(self._base, plan, tensors)
        return adapter

    def _parameter(self, array: Floats) -> nn.Parameter:
        return nn.Parameter(tensor(array, self._base.place), requires_grad=False)

    def _numpy(self, parameter: torch.Tensor) -> Floats:
        return _numbers(parameter)

    def _write(self, adapter: TorchAdapter, name: str, array: Floats) -> None:
        adapter.parameters[name].data.copy_(torch.from_numpy(array))

    def _dense(self, name: str) -> Floats:
        module = self._base.layers.get(name.removesuffix(".weight"))
        if isinstance(module, QuantisedLinear) and name.endswith(".weight"):
            return _numbers(module.dense(torch.float32))
        if name not in self._base.weights:
            raise ModelError(
                msg(
                    "the loaded base has no weight {name}. This family names its layers differently once loaded.",
                    name=name,
                )
            )
        return _numbers(self._base.weights[name])

    def _check_trainable(self, training: TrainingSettings, shifted: bool) -> None:
        check_optimizer(GAPS, training.optimizer, self.device.kind)
        if shifted:
            check_known(self._base)
        self._head.check(self._base.model, self._base.body)
        self._checkpointing(bool(training.gradient_checkpointing))

    def _optimizer(
        self, trained: Mapping[str, nn.Parameter], training: TrainingSettings, multipliers: Mapping[str, float]
    ) -> Optimizer:
        return Optimizer(trained, training, self._base.place, multipliers)

    def _attending(self, group: int) -> AbstractContextManager[None]:
        return shifted(self._base, group)

    @contextmanager
    def _computing(self, work: Sequence[Training[Optimizer]], requests: Sequence[StepRequest]) -> Iterator[None]:
        adapters = [(self._adapters[training.name], training) for training in work]
        with self._activated(work) as self._rows, shifted(self._base, one_group([t.settings for t in work])):
            self._base.model.train()
            try:
                for adapter, training in adapters:
                    adapter.train(frozenset(training.trained))
                    training.optimizer.clear()
                yield
            except BaseException:
                for training in work:
                    training.optimizer.clear()
                memory.release(self._base.place)
                raise
            finally:
                self._base.model.eval()
                for adapter, training in adapters:
                    training.optimizer.clear()
                    adapter.train(frozenset())

    def _backward(self, requests: Sequence[StepRequest], present: Sequence[tuple[int, Batch]]) -> list[float]:
        batch, self._rows.slices = joined([own for _, own in present])
        self._rows.owners, self._rows.total = [number for number, _ in present], len(batch.ids)
        parts, ensemble_size = parts_of(requests, present), self.ensemble_size
        kinds = {part.number: part.objective.value_kind for part in parts}
        rows_needed = "row values" in kinds.values()
        with noisy(self._base, self._noise(requests, present, batch)):
            at_tokens, at_rows, logprobs = self._read(
                self._with_virtual(batch), ("row values" if rows_needed else None)
            )

        def values(number: int, tokens: slice, rows: slice) -> torch.Tensor | None:
            kind = kinds[number]
            if kind is None:
                return None
            head = self._adapters[requests[number].name].parameters[VALUE_HEAD]
            return _scalars(at_tokens[tokens] if kind == "token values" else at_rows[rows], head)

        found = losses(self._ops, parts, ensemble_size, logprobs, values)
        torch.stack(found).sum().backward()  # type: ignore[no-untyped-call]
        return [float(loss.detach()) / ensemble_size for loss in found]

    def _apply(
        self, work: Sequence[Training[Optimizer]], requests: Sequence[StepRequest], losses: Sequence[float]
    ) -> list[StepResult]:
        for training in work:
            if (penalty := self._adapters[training.name].penalty()) is not None:
                penalty.backward()  # type: ignore[no-untyped-call]
        norms = [training.optimizer.gradient_norm() for training in work]
        applied = [n for n, pair in enumerate(zip(losses, norms, strict=True)) if finite(*pair)]
        written = [
            Written(t.optimizer, t.tracker, self._adapters[t.name].after_step) for t in (work[n] for n in applied)
        ]
        with writing(written, self._base.place):
            for n in applied:
                work[n].optimizer.apply(norms[n], requests[n].learning_rate)
                self._track(work[n], self._gradients(work[n]) if work[n].tracker else {})
                self._adapters[work[n].name].after_step()
        return [StepResult(loss, norm) for loss, norm in zip(losses, norms, strict=True)]

    def _gradients(self, training: Training[Optimizer]) -> dict[str, Floats]:
        """Copies of an adapter's gradients."""
        parameters = self._adapters[training.name].parameters
        return {key: _numbers(g) for key in training.trained if (g := parameters[key].grad) is not None}

    @torch.no_grad()
    def _logprobs(self, batch: Batch) -> Floats:
        self._head.check(self._base.model, self._base.body)
        logprobs: Floats = self._read(batch)[2].cpu().numpy()
        return logprobs

    @torch.no_grad()
    def _values(self, batch: Batch, kind: ValueKind, head: nn.Parameter) -> Floats:
        at_tokens, at_rows, _ = self._read(batch, kind)
        return _numbers(_scalars(at_tokens if kind == "token values" else at_rows, head))

    def _update_sizes(self, adapter: TorchAdapter, batch: Batch) -> dict[str, float]:
        return update_sizes(self._base, adapter, batch)

    def _decoder(self) -> Decoder:
        return TorchDecoder(self._base, self._head, self.virtual())

    def _read(self, batch: Batch, kind: ValueKind | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states (n, d) before the supervised tokens, those at row ends with "row values", and log p (n,) of the tokens.

        Padding is on the right and attention is causal, so no mask is needed.
        """
        at, place = positions(batch, kind), self._base.place
        ids = torch.from_numpy(batch.ids[:, : at.width].astype(np.int64)).to(place)
        hidden = self._base.body(input_ids=ids, use_cache=False).last_hidden_state
        flat = hidden.reshape(-1, hidden.shape[-1])
        at_tokens = flat.index_select(0, torch.from_numpy(at.tokens).to(place))
        at_rows = flat.index_select(0, torch.from_numpy(at.rows).to(place))
        logprobs = self._head.log_probabilities(at_tokens, torch.from_numpy(at.targets).to(place))
        return at_tokens, at_rows, logprobs

    def _checkpointing(self, on: bool) -> None:
        """Turn gradient checkpointing of the blocks on or off.

        Set on the blocks themselves: the model's switch would also require gradients of the embeddings, and so a backward pass
        through the blocks below the lowest adapter.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        blocks = [block for block in self._base.body.modules() if isinstance(block, GradientCheckpointingLayer)]
        if on and not blocks:
            raise Unsupported(
                msg(
                    "models of type '{family}' cannot compute activations twice. Turn --gradient-checkpointing off.",
                    family=self._base.model.config.model_type,
                )
            )
        for block in blocks:
            block.gradient_checkpointing = on
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def _scalars(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """Hidden states (n, d) times a scalar head (1, d): (n,) fp32."""
    return hidden.float() @ head[0]


def _numbers(value: torch.Tensor) -> Floats:
    return np.array(value.detach().float().cpu().numpy(), np.float32)
