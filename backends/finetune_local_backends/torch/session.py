"""A loaded base with its adapters: attach, step, score, decode. The arithmetic is in kernels, head and methods."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.checkpoint import checkpoint

from finetune_local.backend import Batch, Decoder, Floats, MemoryUse, StepRequest, StepResult
from finetune_local.spec.numerics.shifted import check_shifted, group_of, one_group
from finetune_local.spec.objectives import Objective
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import Source, Tracker, trainable_parameters, tuner_of
from finetune_local.system.errors import AdapterError, ModelError, OutOfMemory, Unsupported
from finetune_local_backends.noise import batch_noise
from finetune_local_backends.together import check_plans, joined, rounds
from finetune_local_backends.torch import memory
from finetune_local_backends.torch.decoder import TorchDecoder
from finetune_local_backends.torch.head import Head
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.measure import update_sizes
from finetune_local_backends.torch.noisy import noisy
from finetune_local_backends.torch.ops import OPS
from finetune_local_backends.torch.optimizer import Optimizer, finite
from finetune_local_backends.torch.quantised import QuantisedLinear
from finetune_local_backends.torch.shifted import check_known, shifted
from finetune_local_backends.torch.tuners import Adapters, check_tensors
from finetune_local_backends.torch.tuners.sites import SiteAdapters
from finetune_local_backends.torch.tuners.split import Rows, shared_sites
from finetune_local_backends.torch.undo import Written, writing
from finetune_local_backends.virtual import VirtualContext, batch_with, mean_over_ensemble, row_with
from finetune_local_backends.windows import windows

TRACKER = "tracker:"


@dataclass
class _Training:
    """What prepare() made ready."""

    name: str
    settings: TrainingSettings
    optimizer: Optimizer
    trained: frozenset[str]
    tracker: Tracker | None


class TorchSession(VirtualContext):
    """See Session."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self.precision, self.device = base.precision, base.device
        self._head = Head(base.model)
        self._keepers: dict[str, Adapters] = {}
        self._plans: dict[str, AdapterPlan] = {}
        self._active: str | None = None
        self._trainings: dict[str, _Training] = {}
        self._wanting: tuple[str, ...] = ()
        self._seed = 0

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
        if name in self._plans:
            raise AdapterError(f"an adapter called '{name}' is in memory already. Detach it first.")
        tuner = tuner_of(plan)
        if tensors is not None:
            check_tensors(tuner.shapes(plan), tensors)
        self.activate(None)
        with memory.guard(f"attach the adapter '{name}'"):
            source = Source(self.weight, ids, self._base.embedding_scale, stored)
            given = tuner.initial(plan, seed, source) if tensors is None else tensors
            self._keeper(plan.tuner).attach(name, plan, given)
        self._plans[name] = plan
        self.activate(name)
        return trainable_parameters(plan)

    def detach(self, name: str) -> None:
        """See Session. Another active adapter stays active."""
        keeper = self._keeper_of(name)
        if self._active == name:
            self.activate(None)
        if name in self._wanting:  # one of several that were trained in one pass, none of which is active
            self._stop_gradients()
        self._trainings.pop(name, None)
        keeper.detach(name)
        del self._plans[name]

    def adapters(self) -> list[str]:
        """See Session."""
        return list(self._plans)

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

    def weight(self, name: str) -> Floats:
        """See Session."""
        active = self._active
        self.activate(None)  # a full adapter computes in the base's own parameters
        try:
            return _dense(self._base, name)
        finally:
            self.activate(active)

    def tensors(self, name: str) -> dict[str, Floats]:
        """See Session."""
        parameters = self._keeper_of(name).parameters(name)
        return {key: np.array(value.detach().cpu().numpy(), np.float32) for key, value in parameters.items()}

    def prepare(self, name: str, training: TrainingSettings) -> None:
        """See Session. Raises Unsupported where the head's arithmetic or the optimizer is not known here."""
        parameters, plan = self._keeper_of(name).parameters(name), self._plans[name]
        tuner = tuner_of(plan)
        lr_multipliers = tuner.lr_multipliers(plan)
        trained = {key: value for key, value in parameters.items() if lr_multipliers.get(key, 1.0)}
        text = self._base.model.config.get_text_config()
        check_shifted(plan, training, windows(text.to_dict(), text.num_hidden_layers))
        if group_of(training):
            check_known(self._base)
        self._head.check(self._base.model, self._base.body)
        self._checkpointing(bool(training.gradient_checkpointing))
        with memory.guard("hold the optimizer's states"):
            optimizer = Optimizer(trained, training, self._base.place, lr_multipliers)
        self._trainings.pop(name, None)
        tracker = tuner.tracker(plan, training.max_steps or 1)
        self._trainings[name] = _Training(name, training, optimizer, frozenset(trained), tracker)

    def seed(self, seed: int) -> None:
        """See Session."""
        self._seed = seed
        torch.manual_seed(seed)

    def step(self, batches: Sequence[Batch], objective: Objective, learning_rate: float) -> StepResult:
        """See Session."""
        return self.step_many([StepRequest(self._ready().name, batches, objective, learning_rate)])[0]

    def step_many(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        """See Session."""
        work = [self._ready(request.name) for request in requests]
        optimizers = [training.optimizer for training in work]
        group = one_group([training.settings for training in work])
        self._start_gradients(work)
        for optimizer in optimizers:
            optimizer.clear()
        losses = [0.0] * len(requests)
        self._base.model.train()
        try:
            with (
                self._computing(work) as rows,
                shifted(self._base, group),
                memory.guard(f"train on {_largest(requests)} tokens at once"),
            ):
                for present in rounds(requests):
                    for number, loss in zip(
                        [n for n, _ in present], self._backward(requests, present, rows), strict=True
                    ):
                        losses[number] += loss
                for training in work:
                    if (penalty := self._keeper_of(training.name).penalty(training.name)) is not None:
                        penalty.backward()  # type: ignore[no-untyped-call]
                norms = [optimizer.gradient_norm() for optimizer in optimizers]
                applied = [n for n, pair in enumerate(zip(losses, norms, strict=True)) if finite(*pair)]
                with writing([self._written(work[n]) for n in applied], self._base.place):
                    for n in applied:
                        work[n].optimizer.apply(norms[n], requests[n].learning_rate)
                        self._track(work[n])
                        self._keeper_of(work[n].name).after_step(work[n].name)
        except OutOfMemory:
            for optimizer in optimizers:
                optimizer.clear()
            memory.release(self._base.place)
            raise
        finally:
            self._base.model.eval()
        for optimizer in optimizers:
            optimizer.clear()
        return [StepResult(loss, norm) for loss, norm in zip(losses, norms, strict=True)]

    @torch.no_grad()
    def score(self, batch: Batch) -> Floats:
        """See Session."""
        self._head.check(self._base.model, self._base.body)
        with memory.guard(f"score {batch.ids.size} tokens at once"):
            found = self._log_probabilities(batch).cpu().numpy()
        return mean_over_ensemble(found, self.ensemble_size)

    def update_sizes(self, batch: Batch) -> dict[str, float]:
        """See Session."""
        keeper = self._keeper_of(self._active or "")
        slots = keeper.slots(self._active or "") if isinstance(keeper, SiteAdapters) else {}
        with memory.guard(f"measure updates of {batch.ids.size} tokens at once"):
            return update_sizes(self._base, slots, batch)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Floats:
        """See Session. By the model's own forward pass, so it also checks ours."""
        with memory.guard(f"read {len(ids)} tokens at once"):
            virtual = self.virtual()
            whole = row_with(ids, self._base.vocabulary, virtual, 0)
            logits = self._base.model(input_ids=torch.tensor([whole], device=self._base.place), use_cache=False).logits
        result: Floats = logits[0, virtual.count :].float().cpu().numpy()
        return result

    def decoder(self) -> Decoder:
        """See Session."""
        return TorchDecoder(self._base, self._head, self.virtual())

    def optimizer_state(self, name: str | None = None) -> dict[str, npt.NDArray[np.generic]]:
        """See Session."""
        training = self._ready(name)
        tracked = training.tracker.state() if training.tracker else {}
        return training.optimizer.state() | {TRACKER + key: np.array(value) for key, value in tracked.items()}

    def restore_optimizer(self, state: Mapping[str, npt.NDArray[np.generic]], name: str | None = None) -> None:
        """See Session."""
        training = self._ready(name)
        training.optimizer.restore({key: value for key, value in state.items() if not key.startswith(TRACKER)})
        if training.tracker is not None:
            kept = {key.removeprefix(TRACKER): value for key, value in state.items() if key.startswith(TRACKER)}
            training.tracker.restore(kept)

    def memory(self) -> MemoryUse:
        """See Session."""
        return memory.use(self._base.place)

    def _backward(self, requests: Sequence[StepRequest], present: list[tuple[int, Batch]], rows: Rows) -> list[float]:
        """The loss of each micro-batch that is computed at once; gradients are added to those before.

        Prompts side by side each get the gradient they would get alone; the loss is their mean.
        """
        batch, rows.slices = joined([batch for _, batch in present])
        rows.owners, rows.total = [number for number, _ in present], len(batch.ids)
        ensemble_size = self.ensemble_size
        sizes = [ensemble_size * own.supervised for _, own in present]
        with noisy(self._base, self._noise(requests, present, batch)):
            found = self._log_probabilities(batch).split(sizes)  # type: ignore[no-untyped-call]
        losses = []
        for part, (number, batch) in zip(found, present, strict=True):
            request = requests[number]
            total = float(sum(other.supervised for other in request.batches))
            each = [request.objective.loss(OPS, piece, batch, total) for piece in part.chunk(ensemble_size)]
            losses.append(torch.stack(each).sum())
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        return [float(loss.detach()) / ensemble_size for loss in losses]

    def _noise(self, requests: Sequence[StepRequest], present: list[tuple[int, Batch]], batch: Batch) -> Floats | None:
        """NEFTune's noise for micro-batches that are computed at once as `batch`."""
        alphas = [self._ready(requests[n].name).settings.neftune_alpha for n, own in present for _ in own.ids]
        width = int(self._base.model.get_input_embeddings().weight.shape[1])
        return batch_noise(batch, alphas, self._seed, width, self.virtual())

    def _written(self, training: _Training) -> Written:
        """What a step writes for an adapter."""
        keeper = self._keeper_of(training.name)
        return Written(training.optimizer, training.tracker, lambda: keeper.after_step(training.name))

    def _track(self, training: _Training) -> None:
        """Let the family change its tensors between two steps (AdaLoRA's budget)."""
        if training.tracker is None:
            return
        parameters = self._keeper_of(training.name).parameters(training.name)
        now = {key: _numbers(parameters[key]) for key in training.trained}
        gradients = {key: _numbers(g) for key in training.trained if (g := parameters[key].grad) is not None}
        for key, value in training.tracker.update(now, gradients).items():
            parameters[key].data.copy_(torch.from_numpy(value))

    def _log_probabilities(self, batch: Batch) -> torch.Tensor:
        """log p of the supervised tokens (n,), member by member, from the hidden states one position before each.

        Padding stands on the right and attention looks left only, so no mask is needed; columns after the last state
        that is used are left out.
        """
        batch = batch_with(batch, self._base.vocabulary, self.virtual())
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

    def _ready(self, name: str | None = None) -> _Training:
        """What prepare() made for an adapter, or for the last one."""
        if not self._trainings or (name is not None and name not in self._trainings):
            raise RuntimeError("prepare() comes before training")
        return self._trainings[name or next(reversed(self._trainings))]

    @contextmanager
    def _computing(self, work: Sequence[_Training]) -> Iterator[Rows]:
        """Within it one adapter is active, as usual, or several are, each for its own rows."""
        if len(work) == 1:
            yield Rows()
            return
        check_plans([self._plans[training.name] for training in work])
        slots = [cast(SiteAdapters, self._keeper_of(training.name)).slots(training.name) for training in work]
        with shared_sites(self._base, slots) as rows:
            yield rows

    def _start_gradients(self, work: Sequence[_Training]) -> None:
        """Activate one adapter, or none where several share a pass, and want gradients of all of them."""
        names = tuple(training.name for training in work)
        self.activate(names[0] if len(names) == 1 else None)
        if names != self._wanting:
            self._stop_gradients()
            for training in work:
                self._keeper_of(training.name).train(training.name, training.trained)
            self._wanting = names

    def _stop_gradients(self) -> None:
        for name in self._wanting:
            self._keeper_of(name).train(name, frozenset())
        self._wanting = ()

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

    def _keeper(self, tuner: str) -> Adapters:
        if tuner not in self._keepers:
            module = importlib.import_module(f"finetune_local_backends.torch.tuners.{tuner}")
            self._keepers[tuner] = module.adapters(self._base)
        return self._keepers[tuner]

    def _keeper_of(self, name: str) -> Adapters:
        if name not in self._plans:
            raise AdapterError(
                f"no adapter called '{name}' is in memory. There is: {', '.join(self._plans) or 'none'}."
            )
        return self._keepers[self._plans[name].tuner]


def _dense(base: Base, name: str) -> Floats:
    """A weight of the base as fp32 numpy. Raises ModelError where it is missing."""
    module = base.layers.get(name.removesuffix(".weight"))
    if isinstance(module, QuantisedLinear) and name.endswith(".weight"):
        return _numbers(module.dense(torch.float32))
    if name not in base.weights:
        raise ModelError(f"the loaded base has no weight {name}. This family names its layers otherwise once loaded.")
    return _numbers(base.weights[name])


def _numbers(value: torch.Tensor) -> Floats:
    return np.array(value.detach().float().cpu().numpy(), np.float32)


def _largest(requests: Sequence[StepRequest]) -> int:
    """Tokens, with padding, of the largest micro-batches computed at once."""
    return sum(max((batch.ids.size for batch in request.batches), default=0) for request in requests)
