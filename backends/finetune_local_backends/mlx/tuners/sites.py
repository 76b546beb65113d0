"""The places in a model where adapters compute: each wraps one module of the base and gives it to at most one slot.

A family that works at modules (linear layers, embeddings, norms, a block's attention or MLP) writes a Slot and an attach()
that says which slot goes where:

    class Scaled(Slot):
        scale: mx.array

        def __init__(self, module: str) -> None:
            super().__init__(module, {"scale": PREFIX + module + ".scale"})

        def __call__(self, base, x):
            return base(x) * self.scale.astype(x.dtype)

    def attach(model, plan, tensors):
        return SiteAdapter(tensors, [(model.linear(t), Scaled(t.module)) for t in plan.targets])

SiteAdapter does the rest. Several adapters, of several families, may share one site; with no slot active it is its module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetune_local.spec.targets import block_of
from finetune_local_backends.mlx.model import Place
from finetune_local_backends.mlx.tuners import Adapter, Floats
from finetune_local_backends.tables import shared_with


class Slot:
    """One adapter's part at one site.

    `names` says which attributes hold arrays, and under which names these are on disk; several slots may name one tensor.
    `rate` is the chance of dropout, `key` its random numbers in this micro-batch, None where it is off.
    """

    def __init__(self, module: str, names: Mapping[str, str], rate: float = 0.0) -> None:
        """`module` is the Hugging Face name of the module it goes to."""
        self.module, self.names, self.rate = module, dict(names), rate
        self.key: mx.array | None = None

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module `base` is to give for these arguments with this adapter."""
        raise NotImplementedError

    def as_linear(self, base: Any, x: mx.array) -> mx.array:
        """Of an embedding: its product as a tied head. The base's, unless a family changes the head too."""
        result: mx.array = base.as_linear(x)
        return result

    def fill(self, parameters: Mapping[str, mx.array]) -> None:
        """Take those of its arrays that are in `parameters`."""
        for attribute, name in self.names.items():
            if name in parameters:
                setattr(self, attribute, parameters[name])

    goes_on = False
    """Whether `beside` is there: the output can be made from the module's own."""

    def beside(self, base: Any, x: mx.array, y: mx.array) -> mx.array:
        """__call__() where y = base(x) has been computed already, for the rows of several adapters at once."""
        raise NotImplementedError

    def refresh(self, base: Any) -> None:
        """Called after the arrays changed, for what is derived from them and the base and kept between calls."""

    def penalty(self) -> mx.array | None:
        """This slot's part of the family's regularisation, a scalar; None where it has none."""
        return None

    def dropped(self, x: mx.array) -> mx.array:
        """x with a share of its numbers zeroed and the rest scaled up; the same again for the same key."""
        if self.key is None or self.rate == 0:
            return x
        kept = mx.random.bernoulli(1 - self.rate, x.shape, key=self.key)
        return mx.where(kept, x / (1 - self.rate), mx.zeros((), x.dtype))


class Site(nn.Module):
    """A module of the base, and the slot that computes there, if any. Everything else is asked of the module itself."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.base = base
        self.active: Slot | None = None
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the module, or as the active slot."""
        base: Any = self.base
        return base(*args, **kwargs) if self.active is None else self.active(base, *args, **kwargs)

    def as_linear(self, x: mx.array) -> mx.array:
        """An embedding used as the head."""
        base: Any = self.base
        result: mx.array = base.as_linear(x) if self.active is None else self.active.as_linear(base, x)
        return result

    def __getattr__(self, key: str) -> Any:
        """What is not the site's own is looked for in the module: code of the model reads its attributes."""
        if key in self:
            return self[key]
        if "base" not in self:
            raise AttributeError(key)
        return getattr(self["base"], key)


class SiteAdapter(Adapter):
    """An adapter that is slots. See Adapter."""

    def __init__(self, tensors: Mapping[str, Floats], slots: Sequence[tuple[Place, Slot]]) -> None:
        """`slots` say where each slot goes, one for a place; places are found before, so that all or nothing is wrapped."""
        # In one order wherever they come from: the gradient's norm is a sum, and going on after a stop must be exact.
        self.parameters: dict[str, mx.array] = {}
        for name in sorted(tensors):
            same = next((other for other in shared_with(name, tensors, tensors) if other in self.parameters), None)
            made = self.parameters[same] if same else mx.array(np.asarray(tensors[name], np.float32))
            self.parameters[name] = made
        self._sites: list[tuple[Site, Slot, Place]] = []
        self._takers: dict[str, list[Slot]] = {}
        if len({(id(place.owner), place.key) for place, _ in slots}) < len(slots):
            raise RuntimeError("an adapter can have one slot at a module, not several")
        for place, slot in slots:
            module = place.get()
            if not isinstance(module, Site):
                module = Site(module)
                place.put(module)
            module.users += 1
            self._sites.append((module, slot, place))
            for name in slot.names.values():
                self._takers.setdefault(name, []).append(slot)
        for slot in (slot for _, slot, _ in self._sites):
            slot.fill(self.parameters)
        self.changed()

    def sites(self) -> list[tuple[Site, Slot]]:
        """Where it computes."""
        return [(site, slot) for site, slot, _ in self._sites]

    def place(self, parameters: Mapping[str, mx.array]) -> None:
        """See Adapter."""
        slots = {id(slot): slot for name in parameters for slot in self._takers.get(name, ())}
        for slot in slots.values():
            slot.fill(parameters)
        for site, slot, _ in self._sites:
            site.active = slot

    def withdraw(self) -> None:
        """See Adapter."""
        for site, _, _ in self._sites:
            site.active = None

    def remove(self) -> None:
        """See Adapter. A site without users gives its place back to its module."""
        for site, _, place in self._sites:
            site.users -= 1
            if site.users == 0:
                place.put(site.base)

    def changed(self) -> None:
        """See Adapter."""
        for site, slot, _ in self._sites:
            slot.fill(self.parameters)
            slot.refresh(site.base)

    def dropout(self, key: mx.array | None) -> None:
        """A key of its own for every slot, drawn once, so that a checkpointed block computed again drops the same."""
        keys = None if key is None else mx.random.split(key, len(self._sites))
        for index, (_, slot, _) in enumerate(self._sites):
            slot.key = None if keys is None else keys[index]

    def penalty(self, parameters: Mapping[str, mx.array]) -> mx.array | None:
        """The sum over the slots that have one."""
        self.place(parameters)
        parts = [part for _, slot, _ in self._sites if (part := slot.penalty()) is not None]
        return mx.stack(parts).sum() if parts else None

    def used(self) -> dict[int | None, list[str]]:
        """See Adapter: a tensor that several blocks share is named in each of them."""
        result: dict[int | None, dict[str, None]] = {}
        for _, slot, _ in self._sites:
            result.setdefault(block_of(slot.module + "."), {}).update(dict.fromkeys(slot.names.values()))
        return {block: list(names) for block, names in result.items()}
