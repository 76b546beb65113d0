"""Weights trained themselves, on torch: an adapter is a set of fp32 weights that take the base's place while it is active."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from finetune_local.backend import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import ModelError, Unsupported
from finetune_local_backends.torch.load import Base
from finetune_local_backends.torch.quantised import QuantisedLinear
from finetune_local_backends.torch.tuners import tensor


class FullAdapters:
    """See Adapters.

    The trained tensors ("masters") are fp32. On an fp32 base the model computes with them directly; on a bf16 base with a
    copy, renewed after each step, and gradients are added up in fp32.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._own: dict[int, torch.Tensor] = {}
        self._masters: dict[str, dict[str, nn.Parameter]] = {}
        self._active: str | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, name: str, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> None:
        """See Adapters. Raises Unsupported where a weight is held quantised."""
        masters: dict[str, nn.Parameter] = {}
        made: dict[int, nn.Parameter] = {}
        for target in plan.targets:
            weight = self._base.weights.get(target.module)
            if isinstance(self._base.layers.get(target.module.removesuffix(".weight")), QuantisedLinear):
                raise Unsupported(
                    f"{target.module} is held in {self._base.precision}, and such weights cannot be trained. "
                    "Use --precision bf16, or --method qlora."
                )
            shape = (target.out_features, target.in_features) if target.in_features else (target.out_features,)
            if weight is None or tuple(weight.shape) != shape:
                found = "is missing" if weight is None else f"is {tuple(weight.shape)}"
                raise ModelError(f"{target.module} {found} in the loaded base, but the adapter has it as {shape}.")
            if id(weight) not in made:  # tied weights are one tensor under two names
                key = PREFIX + target.module
                made[id(weight)] = nn.Parameter(tensor(tensors[key], self._base.place), requires_grad=False)
            masters[PREFIX + target.module] = made[id(weight)]
        self._masters[name] = masters

    def detach(self, name: str) -> None:
        """See Adapters."""
        del self._masters[name]

    def activate(self, name: str | None) -> None:
        """See Adapters."""
        self._no_gradients()
        for key in self._masters.get(self._active or "", {}):
            weight = self._weight(key)
            weight.data = self._own.pop(id(weight), weight.data)
        self._active = name
        for key, master in self._masters.get(name or "", {}).items():
            weight = self._weight(key)
            self._own.setdefault(id(weight), weight.data)
            weight.data = master.data.to(weight.dtype)  # no copy on an fp32 base

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """See Adapters."""
        return dict(self._masters[name])

    def train(self, name: str, trained: frozenset[str]) -> None:
        """See Adapters. Each gradient goes to its master as soon as it is complete."""
        self._no_gradients()
        pairs = {
            id(self._weight(key)): (self._weight(key), master)
            for key, master in self._masters[name].items()
            if key in trained
        }
        for weight, master in pairs.values():
            weight.requires_grad_(True)
            hook = weight.register_post_accumulate_grad_hook(_Collect(master))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    def after_step(self, name: str) -> None:
        """See Adapters: renew the copies on a bf16 base."""
        for key, master in self._masters[name].items():
            weight = self._weight(key)
            if weight.data_ptr() != master.data_ptr():
                weight.data.copy_(master.data)

    def penalty(self, name: str) -> torch.Tensor | None:
        """See Adapters: none."""
        return None

    def _no_gradients(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for key in self._masters.get(self._active or "", {}):
            self._weight(key).requires_grad_(False)

    def _weight(self, key: str) -> nn.Parameter:
        return self._base.weights[key.removeprefix(PREFIX)]


class _Collect:
    """Moves a weight's gradient to its master."""

    def __init__(self, master: nn.Parameter) -> None:
        self.master = master

    def __call__(self, weight: torch.Tensor) -> None:
        if weight.grad is None:
            return
        if self.master.grad is None:
            self.master.grad = weight.grad.float()
        else:
            self.master.grad += weight.grad
        weight.grad = None


def adapters(base: Base) -> FullAdapters:
    """See the package."""
    return FullAdapters(base)
