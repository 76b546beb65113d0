"""The places in a model where adapters compute: each wraps one module of the base and gives it to at most one slot.

A family that works at modules (linear layers, embeddings, norms, a block's attention or MLP) writes Slots and a function that
says which slot goes where; `SiteAdapters` does the rest. With no slot active a site is its module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from finetune_local.backend import Floats
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import tuner_of
from finetune_local.system.errors import ModelError
from finetune_local_backends.tables import shared_with
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.quantised import QuantisedLinear
from finetune_local_backends.torch.tuners import tensor


class Slot(nn.Module):
    """One adapter's part at one site. Parameters are given by the keeper, under their names on disk."""

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module is to give with this adapter."""
        raise NotImplementedError

    goes_on: bool = False
    """Whether `beside` is there: the output can be made from the module's own."""

    def beside(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """forward() where y = base(x) has been computed already, for the rows of several adapters at once."""
        raise NotImplementedError

    @classmethod
    def at_once(
        cls,
        base: nn.Module,  # noqa: ARG003
        x: torch.Tensor,  # noqa: ARG003
        parts: Sequence[tuple[slice, Slot]],  # noqa: ARG003
    ) -> torch.Tensor | None:
        """What several slots of this class give together, each for its rows of x; None where there is no shorter way."""
        return None

    def head_part(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """At the head: i (n, rank) and B (vocabulary, rank) fp32 of i·Bᵀ, which is added to the logits of hidden (n, d)."""
        raise NotImplementedError

    def head_weight(self, base: nn.Module) -> torch.Tensor | None:
        """At the head: a matrix (vocabulary, d) in the place of its own; None where the base's holds."""
        return None

    def refresh(self) -> None:
        """Called after the parameters changed, for what is derived from them."""

    def penalty(self) -> torch.Tensor | None:
        """This slot's part of the family's regularisation, if it has one."""
        return None


class Site(nn.Module):
    """A module of the base, and the slot that computes there, if any. Everything else is asked of the module itself."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.slots: list[Slot] = []
        self.active: list[Slot] = []  # a list of at most one, so that torch does not register it as a part
        self.training = base.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module, or as the active slot."""
        if not self.active:
            return self.base(*args, **kwargs)
        return self.active[0](self.base, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What torch does not find here is looked for in the module: code of the model reads its attributes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


def bare(module: nn.Module) -> nn.Module:
    """The module inside a site, or the module itself."""
    return module.base if isinstance(module, Site) else module


def linear_at(base: Base, target: Target) -> nn.Linear | QuantisedLinear:
    """The base's linear layer of a target. Raises ModelError where there is none, or of another shape; a size of 0 is not told."""
    module = bare(module_at(base, target.module))
    if not isinstance(module, nn.Linear | QuantisedLinear):
        raise ModelError(f"{target.module} is a {type(module).__name__}; an adapter needs a linear layer.")
    told = (target.out_features or module.out_features, target.in_features or module.in_features)
    if (module.out_features, module.in_features) != told:
        raise ModelError(
            f"{target.module} is {module.out_features} × {module.in_features} in the base, but the adapter was made "
            f"for {target.out_features} × {target.in_features}."
        )
    return module


def module_at(base: Base, path: str) -> nn.Module:
    """The module of a dotted name, or the site around it. Raises ModelError where there is none."""
    module: nn.Module = base.model
    for part in path.split("."):
        found = getattr(bare(module), part, None)
        if not isinstance(found, nn.Module):
            raise ModelError(
                f"the base has no module {path}. The adapter was made for another model, or this family names "
                "its layers otherwise once loaded."
            )
        module = found
    return module


Placing = Callable[[Base, AdapterPlan, Mapping[str, nn.Parameter]], Mapping[str, Slot]]
"""Makes the slots of an adapter by the dotted names of the modules they go to. Raises ModelError where the base lacks one."""


class SiteAdapters:
    """See Adapters: the keeper of every family whose adapters are slots."""

    def __init__(self, base: Base, placing: Placing) -> None:
        self._base, self._placing = base, placing
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}
        self._slots: dict[str, dict[str, Slot]] = {}
        self._active: str | None = None

    def attach(self, name: str, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> None:
        """See Adapters."""
        place, names = self._base.place, tuner_of(plan).shapes(plan)  # their order decides how gradients are added up
        given: dict[str, nn.Parameter] = {}
        for key in names:
            same = next((other for other in shared_with(key, names, tensors) if other in given), None)
            given[key] = given[same] if same else nn.Parameter(tensor(tensors[key], place), requires_grad=False)
        slots = dict(self._placing(self._base, plan, given))
        for path in slots:
            module_at(self._base, path)
        for path, slot in slots.items():
            site_at(self._base, path).slots.append(slot.eval())
        self._parameters[name], self._slots[name] = given, slots

    def detach(self, name: str) -> None:
        """See Adapters. A site without slots gives its place back to its module."""
        del self._parameters[name]
        for path, slot in self._slots.pop(name).items():
            site = site_at(self._base, path)
            site.slots = [other for other in site.slots if other is not slot]
            if not site.slots:
                _put(self._base, path, site.base)

    def activate(self, name: str | None) -> None:
        """See Adapters."""
        for path in self._slots.get(self._active or "", {}):
            site_at(self._base, path).active = []
        self._active = name
        for path, slot in self._slots.get(name or "", {}).items():
            site_at(self._base, path).active = [slot]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """See Adapters."""
        return dict(self._parameters[name])

    def slots(self, name: str) -> dict[str, Slot]:
        """An adapter's slots by the names of the modules they are at."""
        return self._slots[name]

    def train(self, name: str, trained: frozenset[str]) -> None:
        """See Adapters."""
        for key, parameter in self._parameters[name].items():
            parameter.requires_grad_(key in trained)
        for slot in self._slots[name].values():
            slot.train(bool(trained))

    def after_step(self, name: str) -> None:
        """See Adapters."""
        for slot in self._slots[name].values():
            slot.refresh()

    def penalty(self, name: str) -> torch.Tensor | None:
        """See Adapters: the sum over the slots that have one."""
        parts = [part for slot in self._slots[name].values() if (part := slot.penalty()) is not None]
        return torch.stack(parts).sum() if parts else None


def site_at(base: Base, path: str) -> Site:
    """The site around a module, made where there is none yet."""
    module = module_at(base, path)
    if isinstance(module, Site):
        return module
    site = Site(module)
    _put(base, path, site)
    return site


def _put(base: Base, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(bare(module_at(base, parent)) if parent else base.model, name, module)
