"""A loaded base with its adapters: attach, step, score, decode. The arithmetic is in kernels, head and methods."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint

from finetune_local.backend import Batch, Decoder, Floats, MemoryUse, StepResult
from finetune_local.errors import AdapterError, OutOfMemory, Unsupported
from finetune_local.spec.families import families
from finetune_local.spec.objectives import Objective
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings
from finetune_local_backends.torch import memory
from finetune_local_backends.torch.decoder import TorchDecoder
from finetune_local_backends.torch.head import Head
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.methods import Adapters
from finetune_local_backends.torch.ops import OPS
from finetune_local_backends.torch.optimizer import Optimizer, finite


class TorchSession:
    """See Session."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self.precision, self.device = base.precision, base.device
        self._head = Head(base.model)
        self._keepers: dict[str, Adapters] = {}
        self._families: dict[str, str] = {}
        self._active: str | None = None
        self._trained: tuple[str, Optimizer] | None = None
        self._wants_gradients = False

    def attach(self, name: str, plan: AdapterPlan, seed: int, tensors: Mapping[str, Floats] | None = None) -> int:
        """See Session."""
        if name in self._families:
            raise AdapterError(f"an adapter called '{name}' is in memory already. Detach it first.")
        shapes = families()[plan.family].shapes(plan)
        if tensors is not None:
            _check(shapes, tensors)
        self.activate(None)
        with memory.guard(f"attach the adapter '{name}'"):
            self._keeper(plan.family).attach(name, plan, seed, tensors)
        self._families[name] = plan.family
        self.activate(name)
        return sum(int(np.prod(shape)) for shape in shapes.values())

    def detach(self, name: str) -> None:
        """See Session. Another active adapter stays active."""
        keeper = self._keeper_of(name)
        if self._active == name:
            self.activate(None)
        if self._trained is not None and self._trained[0] == name:
            self._trained = None
        keeper.detach(name)
        del self._families[name]

    def adapters(self) -> list[str]:
        """See Session."""
        return list(self._families)

    def activate(self, name: str | None) -> None:
        """See Session."""
        wanted = None if name is None else self._keeper_of(name)
        if name == self._active:
            return
        self._stop_gradients()
        for keeper in self._keepers.values():
            if keeper is not wanted:
                keeper.activate(None)
        if wanted is not None:
            wanted.activate(name)
        self._active = name

    def tensors(self, name: str) -> dict[str, Floats]:
        """See Session."""
        parameters = self._keeper_of(name).parameters(name)
        return {key: np.array(value.detach().cpu().numpy(), np.float32) for key, value in parameters.items()}

    def prepare(self, name: str, training: TrainingSettings) -> None:
        """See Session. Raises Unsupported where the head's arithmetic or the optimizer is not known here."""
        parameters = self._keeper_of(name).parameters(name)
        self._head.check(self._base.model, self._base.body)
        self._checkpointing(bool(training.gradient_checkpointing))
        with memory.guard("hold the optimizer's states"):
            self._trained = (name, Optimizer(parameters, training, self._base.place))

    def seed(self, seed: int) -> None:
        """See Session."""
        torch.manual_seed(seed)

    def step(self, batches: Sequence[Batch], objective: Objective, learning_rate: float) -> StepResult:
        """See Session."""
        name, optimizer = self._training()
        self.activate(name)
        self._start_gradients(name)
        optimizer.clear()
        total = float(sum(batch.supervised for batch in batches))
        self._base.model.train()
        loss = 0.0
        try:
            with memory.guard(f"train on {max(batch.ids.size for batch in batches)} tokens at once"):
                for batch in batches:
                    if batch.supervised:
                        loss += self._backward(batch, objective, total)
                norm = optimizer.gradient_norm()
        except OutOfMemory:
            optimizer.clear()
            memory.release(self._base.place)
            raise
        finally:
            self._base.model.eval()
        if finite(loss, norm):
            optimizer.apply(norm, learning_rate)
            self._keeper_of(name).after_step(name)
        else:
            optimizer.clear()
        return StepResult(loss, norm)

    @torch.no_grad()
    def score(self, batch: Batch) -> Floats:
        """See Session."""
        self._head.check(self._base.model, self._base.body)
        with memory.guard(f"score {batch.ids.size} tokens at once"):
            return self._log_probabilities(batch).cpu().numpy()

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Floats:
        """See Session. By the model's own forward pass, so it also checks ours."""
        with memory.guard(f"read {len(ids)} tokens at once"):
            logits = self._base.model(
                input_ids=torch.tensor([list(ids)], device=self._base.place), use_cache=False
            ).logits
        result: Floats = logits[0].float().cpu().numpy()
        return result

    def decoder(self) -> Decoder:
        """See Session."""
        return TorchDecoder(self._base, self._head)

    def optimizer_state(self) -> dict[str, npt.NDArray[np.generic]]:
        """See Session."""
        return self._training()[1].state()

    def restore_optimizer(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """See Session."""
        self._training()[1].restore(state)

    def memory(self) -> MemoryUse:
        """See Session."""
        return memory.use(self._base.place)

    def _backward(self, batch: Batch, objective: Objective, total: float) -> float:
        """One micro-batch's share of the loss; its gradients are added to those before."""
        loss = objective.loss(OPS, self._log_probabilities(batch), batch, total)
        loss.backward()
        return float(loss.detach())

    def _log_probabilities(self, batch: Batch) -> torch.Tensor:
        """log p of the supervised tokens (n,), from the hidden states one position before each.

        Padding stands on the right and attention looks left only, so no mask is needed; columns after the last state
        that is used are left out.
        """
        rows, columns = np.nonzero(batch.mask[:, 1:])
        place = self._base.place
        if not len(rows):
            return torch.zeros(0, device=place)
        width = int(columns.max()) + 1
        ids = torch.from_numpy(batch.ids[:, :width].astype(np.int64)).to(place)
        hidden = self._base.body(input_ids=ids, use_cache=False).last_hidden_state
        chosen = hidden.reshape(-1, hidden.shape[-1]).index_select(
            0, torch.from_numpy(rows * width + columns).to(place)
        )
        targets = torch.from_numpy(batch.ids[rows, columns + 1].astype(np.int64)).to(place)
        return self._head.log_probabilities(chosen, targets)

    def _training(self) -> tuple[str, Optimizer]:
        if self._trained is None:
            raise RuntimeError("prepare() comes before training")
        return self._trained

    def _start_gradients(self, name: str) -> None:
        if not self._wants_gradients:
            self._keeper_of(name).train(name)
            self._wants_gradients = True

    def _stop_gradients(self) -> None:
        if self._wants_gradients and self._active is not None:
            self._keeper_of(self._active).train(None)
        self._wants_gradients = False

    def _checkpointing(self, wanted: bool) -> None:
        """Blocks that compute their activations again on the way back, or do not.

        Set on the blocks themselves: the model's own switch would also ask for gradients of the embeddings, and so for a
        way back through blocks below the lowest adapter.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        blocks = [block for block in self._base.body.modules() if isinstance(block, GradientCheckpointingLayer)]
        if wanted and not blocks:
            raise Unsupported(
                f"models of type '{self._base.model.config.model_type}' cannot compute activations twice. "
                "Turn --gradient-checkpointing off."
            )
        for block in blocks:
            block.gradient_checkpointing = wanted
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def _keeper(self, family: str) -> Adapters:
        if family not in self._keepers:
            module = importlib.import_module(f"finetune_local_backends.torch.methods.{family}")
            self._keepers[family] = module.adapters(self._base)
        return self._keepers[family]

    def _keeper_of(self, name: str) -> Adapters:
        if name not in self._families:
            raise AdapterError(
                f"no adapter called '{name}' is in memory. There is: {', '.join(self._families) or 'none'}."
            )
        return self._keepers[self._families[name]]


def _check(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Floats]) -> None:
    """Raise AdapterError where names or shapes are not those of the plan."""
    if lacking := sorted(set(shapes) - set(tensors)):
        raise AdapterError(f"the adapter lacks {len(lacking)} tensors, the first is {lacking[0]}.")
    if extra := sorted(set(tensors) - set(shapes)):
        raise AdapterError(f"the adapter has {len(extra)} tensors too many, the first is {extra[0]}.")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise AdapterError(f"{name} is {tensors[name].shape}, but the settings say {shape}.")
