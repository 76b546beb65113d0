"""The adapters attached to a base: their names, their plans, and which of them are active."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, TypeVar

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import Source, VirtualIds, trainable_parameters, tuner_of
from finetune_local.spec.value_head import VALUE_HEAD, initial_value_head
from finetune_local.system.errors import AdapterError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.adapter import Adapter, check_tensors

Attached = TypeVar("Attached", bound=Adapter[Any])


class AttachedAdapters(ABC, Generic[Attached]):
    """See the methods of the same names in Session."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """`config` is the text part of the base's config."""
        self._config = config
        self._adapters: dict[str, Attached] = {}
        self._plans: dict[str, AdapterPlan] = {}
        self._active: dict[str, float] = {}

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
        """See Session."""
        if name in self._plans:
            raise AdapterError(msg("an adapter called '{name}' is already in memory. Detach it first.", name=name))
        tuner, head = tuner_of(plan), None
        if tensors is not None:
            if VALUE_HEAD in tensors:
                head = tensors[VALUE_HEAD]
                tensors = {key: value for key, value in tensors.items() if key != VALUE_HEAD}
            check_tensors(tuner.shapes(plan), tensors)
        hidden = int(self._config.get("hidden_size", self._embedding_width))
        if head is not None:
            check_tensors({VALUE_HEAD: (1, hidden)}, {VALUE_HEAD: head})
        elif value_head:
            head = initial_value_head(seed, hidden)
        self.activate(None)  # values derived from the base must be computed from the bare base
        with self._guard(msg("attach the adapter '{name}'", name=name)):
            source = Source(self.weight, ids, self._embedding_scale, stored)
            given = tuner.initial(plan, seed, source) if tensors is None else tensors
            adapter = self._attach(plan, given)
            if head is not None:
                adapter.parameters[VALUE_HEAD] = self._parameter(head)
        self._adapters[name], self._plans[name] = adapter, plan
        self.activate(name)
        return trainable_parameters(plan) + (0 if head is None else head.size)

    def detach(self, name: str) -> None:
        """See Session."""
        adapter = self._adapter(name)
        if name in self._active:
            self.activate(None)
        adapter.detach()
        del self._adapters[name], self._plans[name]

    def adapters(self) -> list[str]:
        """See Session."""
        return list(self._adapters)

    def activate(self, adapters: str | Mapping[str, float] | None) -> None:
        """See Session."""
        weights = {} if adapters is None else {adapters: 1.0} if isinstance(adapters, str) else dict(adapters)
        for name in weights:
            self._adapter(name)
        if len(weights) > 1 or any(weight != 1.0 for weight in weights.values()):
            self._check_sum(weights)
        if weights == self._active:
            return
        for name in self._active:
            self._adapters[name].deactivate()
        self._active = {}
        for name, weight in weights.items():
            self._adapters[name].activate(weight)
            self._active[name] = weight

    @contextmanager
    def using(self, adapters: str | Mapping[str, float] | None) -> Iterator[None]:
        """Within this context other adapters are active."""
        before = dict(self._active)
        self.activate(adapters)
        try:
            yield
        finally:
            self.activate(before)

    def weight(self, name: str) -> Floats:
        """See Session."""
        with self.using(None):  # a full adapter replaces the base's weights
            return self._dense(name)

    def tensors(self, name: str) -> dict[str, Floats]:
        """See Session."""
        return self._adapter(name).tensors()

    @property
    def ensemble_size(self) -> int:
        """See Session."""
        return self.virtual().ensemble_size

    @property
    def virtual_tokens(self) -> int:
        """See Session."""
        plan = self._plan()
        return 0 if plan is None else tuner_of(plan).virtual_tokens(plan)

    def virtual(self) -> VirtualIds:
        """The virtual tokens that the active adapter puts before every text."""
        plan = self._plan()
        return VirtualIds() if plan is None else tuner_of(plan).virtual_ids(plan)

    def _plan(self) -> AdapterPlan | None:
        """The plan of the only active adapter; None for the bare base and for a sum, whose adapters add no positions."""
        return self._plans[next(iter(self._active))] if len(self._active) == 1 else None

    def _check_sum(self, weights: Mapping[str, float]) -> None:
        for name in weights:
            plan = self._plans[name]
            if reason := tuner_of(plan).sum_refusal(plan):
                raise Unsupported(
                    msg("adapter '{name}' cannot be part of a weighted sum: {reason}", name=name, reason=reason)
                )

    def _adapter(self, name: str) -> Attached:
        if name not in self._adapters:
            names = ", ".join(self._adapters) or msg("none")
            raise AdapterError(
                msg("no adapter called '{name}' is in memory. In memory: {names}.", name=name, names=names)
            )
        return self._adapters[name]

    @property
    @abstractmethod
    def _embedding_scale(self) -> float:
        """The factor applied to embeddings before the first block."""

    @abstractmethod
    def _guard(self, doing: str) -> AbstractContextManager[None]:
        """Turn every out-of-memory error of the framework into OutOfMemory; `doing` completes "not enough memory to ..."."""

    @abstractmethod
    def _attach(self, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> Attached:
        """Attach an adapter by its tuner's file; see adapter.py."""

    @abstractmethod
    def _parameter(self, array: Floats) -> Any:
        """A parameter with these values."""

    @abstractmethod
    def _dense(self, name: str) -> Floats:
        """A weight of the base as it is now, dense, fp32. Raises ModelError if it is missing."""

    @property
    @abstractmethod
    def _embedding_width(self) -> int:
        """Width of the embedding's rows."""
