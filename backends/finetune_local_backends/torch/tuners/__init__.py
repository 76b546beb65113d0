"""One file per family of parameters, of the same name as in spec/families: `adapters(base)` makes its keeper for a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from finetune_local.backend import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.system.errors import AdapterError


class Adapters(Protocol):
    """All adapters of one family on one base."""

    def attach(self, name: str, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> None:
        """Add an adapter, inactive; names are those of the family's shapes(plan). All or nothing."""
        ...

    def detach(self, name: str) -> None:
        """Forget an inactive adapter."""
        ...

    def activate(self, name: str | None) -> None:
        """Make one adapter compute, or none of this family; exact both ways."""
        ...

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The fp32 parameters by their name on disk, frozen ones included."""
        ...

    def train(self, name: str, trained: frozenset[str]) -> None:
        """Want gradients of these parameters of an adapter and of no others of it; of none: it is not trained now."""
        ...

    def after_step(self, name: str) -> None:
        """Called after the optimizer changed the parameters of the active adapter."""
        ...

    def penalty(self, name: str) -> torch.Tensor | None:
        """What is added to the loss of a step, once, and not told: a family's regularisation."""
        ...


def tensor(array: Floats, device: torch.device) -> torch.Tensor:
    """A copy of a numpy array as an fp32 tensor of its own."""
    return torch.from_numpy(array.astype("float32", copy=True)).to(device)


def check_tensors(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Floats]) -> None:
    """Raise AdapterError where names or shapes are not those of the plan."""
    if lacking := sorted(set(shapes) - set(tensors)):
        raise AdapterError(f"the adapter lacks {len(lacking)} tensors, the first is {lacking[0]}.")
    if extra := sorted(set(tensors) - set(shapes)):
        raise AdapterError(f"the adapter has {len(extra)} tensors too many, the first is {extra[0]}.")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise AdapterError(f"{name} is {tensors[name].shape}, but the settings say {shape}.")
