"""The contract between a session and an adapter in memory, the same on every backend.

A tuner's file in a backend's `tuners/` has one function:

    def attach(base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> Adapter

It returns an inactive adapter made of the tensors of the tuner's `shapes(plan)`. It reads each tensor only once, since a mapping may
compute tensors on access, and looks up every module before it wraps the first. Raises ModelError if the base has no module for a
target.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from finetune_local.spec.batch import Floats
from finetune_local.spec.low_rank.full_copies import kind_of
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import msg

Array = TypeVar("Array")
Layer = TypeVar("Layer")


class Adapter(ABC, Generic[Array]):
    """One adapter in memory, beside the base.

    `parameters` are the backend's fp32 arrays by their names on disk, frozen ones included.
    """

    parameters: dict[str, Array]

    @abstractmethod
    def activate(self, weight: float = 1.0) -> None:
        """Make the base compute with this adapter: its updates times `weight`, added to those of other active adapters.

        An adapter whose updates do not add up (Tuner.sum_refusal) is activated alone and with weight 1.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Floats]:
        """All tensors as they are saved, fp32."""

    @abstractmethod
    def deactivate(self) -> None:
        """Restore the base's behaviour exactly as before activate()."""

    def detach(self) -> None:
        """Restore the base as if the adapter had never been attached. Called while it is inactive."""

    def after_step(self) -> None:
        """Recompute what is derived from the parameters. Called after they have changed."""


class Place(Protocol):
    """The place of a module in its parent."""

    def get(self) -> Any:
        """The module at this place."""
        ...

    def put(self, value: Any) -> None:
        """Replace the module at this place."""
        ...


class ActiveLayers(Generic[Layer]):
    """The adapter layers of one wrapped module.

    `layer` is the one in use: None for the bare module, a layer itself if it alone is active with weight 1, otherwise the sum
    that `total` makes of several with their weights. Multi-adapter training replaces it during a step.
    """

    def __init__(self, total: Callable[[Sequence[tuple[Layer, float]]], Layer]) -> None:
        self.attached: list[Layer] = []
        self.layer: Layer | None = None
        self._total = total
        self._active: list[tuple[Layer, float]] = []

    def add(self, layer: Layer, weight: float) -> None:
        """Activate an attached layer in addition to the active ones."""
        self._active.append((layer, weight))
        self._choose()

    def remove(self, layer: Layer) -> None:
        """Deactivate a layer, if it is active."""
        self._active = [pair for pair in self._active if pair[0] is not layer]
        self._choose()

    def _choose(self) -> None:
        alone = len(self._active) == 1 and self._active[0][1] == 1.0
        self.layer = self._active[0][0] if alone else self._total(self._active) if self._active else None


class LayeredAdapter(Adapter[Array], Generic[Array, Layer]):
    """An adapter that consists of layers, each at one wrapped module of the base."""

    wrapper: type[Any]
    """The backend's WrappedModule, constructed from a module `base`; its `layers` are ActiveLayers."""

    def __init__(self, parameters: dict[str, Array], layers: Sequence[tuple[Place, Layer]]) -> None:
        """`layers` are pairs of a module's place and its layer, one layer per place."""
        self.parameters = parameters
        self.wrapped: list[tuple[Any, Layer]] = []
        self._places = [place for place, _ in layers]
        for place, layer in layers:
            module = place.get()
            if not isinstance(module, self.wrapper):
                module = self.wrapper(module)
                place.put(module)
            if any(module is wrapped for wrapped, _ in self.wrapped):
                raise RuntimeError("an adapter has at most one layer at a module")
            module.layers.attached.append(layer)
            self.wrapped.append((module, layer))

    def activate(self, weight: float = 1.0) -> None:
        """See Adapter."""
        for module, layer in self.wrapped:
            module.layers.add(layer, weight)

    def deactivate(self) -> None:
        """See Adapter."""
        for module, layer in self.wrapped:
            module.layers.remove(layer)

    def detach(self) -> None:
        """See Adapter. A module without layers is unwrapped."""
        for (module, layer), place in zip(self.wrapped, self._places, strict=True):
            attached = module.layers.attached
            module.layers.attached = [other for other in attached if other is not layer]
            if not module.layers.attached:
                place.put(module.base)


def check_tensors(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Floats]) -> None:
    """Raise AdapterError if names or shapes differ from the plan's."""
    if wrong := sorted(set(tensors) ^ set(shapes)):
        state = msg("missing") if wrong[0] in shapes else msg("not expected")
        raise AdapterError(
            msg(
                "the adapter does not fit: {wrong} is {state} ({count} such tensors).",
                wrong=wrong[0],
                state=state,
                count=len(wrong),
            )
        )
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != tuple(shape):
            raise AdapterError(
                msg(
                    "the adapter does not fit: {name} has shape {shape}, expected {expected}.",
                    name=name,
                    shape=tensors[name].shape,
                    expected=shape,
                )
            )


def shared_with(name: str, names: Collection[str], tensors: Mapping[str, Floats]) -> list[str]:
    """The other names of the same array, if it is an embedding and a head at once."""
    tables = [other for other in names if kind_of(other.removeprefix(PREFIX)) in ("embeddings", "heads")]
    return [other for other in tables if name in tables and other != name and tensors[other] is tensors[name]]
