"""Full fine-tuning on torch: an adapter is a set of fp32 weights that replace the base's while it is active."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import ModelError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.base.quantised import QuantisedLinear
from finetune_local_backends.torch.tuners import TorchAdapter, tensor


class FullAdapter(TorchAdapter):
    """See Adapter.

    The parameters are fp32 masters. An fp32 base uses them directly; a bf16 base uses copies that are renewed after each step, and
    gradients are accumulated in fp32.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], weights: dict[str, nn.Parameter]) -> None:
        """`weights` are the base's, by the same names; tied weights are one parameter under two names in both."""
        self.parameters = parameters
        self._weights = weights
        self._own: dict[int, torch.Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def activate(self, weight: float = 1.0) -> None:
        """See Adapter."""
        for name, own in self._weights.items():
            self._own.setdefault(id(own), own.data)
            own.data = self.parameters[name].data.to(own.dtype)  # no copy on an fp32 base

    def deactivate(self) -> None:
        """See Adapter."""
        for own in self._weights.values():
            own.data = self._own.pop(id(own), own.data)

    def train(self, trained: frozenset[str]) -> None:
        """See TorchAdapter. Each gradient is added to its master's as soon as it is complete."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        for name, parameter in self.parameters.items():
            if name not in self._weights:
                parameter.requires_grad_(name in trained)
        pairs = {id(own): (own, self.parameters[name]) for name, own in self._weights.items() if name in trained}
        for own in self._weights.values():
            own.requires_grad_(id(own) in pairs)
        for own, master in pairs.values():
            self._hooks.append(own.register_post_accumulate_grad_hook(_Collect(master)))  # type: ignore[no-untyped-call]

    def after_step(self) -> None:
        """See Adapter: renew the copies on a bf16 base, while the adapter is active."""
        for name, own in self._weights.items():
            if id(own) in self._own and own.data_ptr() != self.parameters[name].data_ptr():
                own.data.copy_(self.parameters[name].data)


class _Collect:
    """Adds a weight's gradient to its master's."""

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


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> FullAdapter:
    """See adapter.py. Raises Unsupported if a weight is stored quantised."""
    weights: dict[str, nn.Parameter] = {}
    masters: dict[str, nn.Parameter] = {}
    made: dict[int, nn.Parameter] = {}
    for target in plan.targets:
        weight = base.weights.get(target.module)
        if isinstance(base.layers.get(target.module.removesuffix(".weight")), QuantisedLinear):
            raise Unsupported(
                msg(
                    "{name} is stored in {precision}, and such weights cannot be trained. Use --precision bf16, or "
                    "--method qlora.",
                    name=target.module,
                    precision=base.precision,
                )
            )
        shape = (target.out_features, target.in_features) if target.in_features else (target.out_features,)
        if weight is None or tuple(weight.shape) != shape:
            found = msg("is missing") if weight is None else msg("is {shape}", shape=tuple(weight.shape))
            raise ModelError(
                msg(
                    "{module} {found} in the loaded base, but has shape {shape} in the adapter.",
                    module=target.module,
                    found=found,
                    shape=shape,
                )
            )
        name = PREFIX + target.module
        if id(weight) not in made:  # tied weights are one tensor under two names
            made[id(weight)] = nn.Parameter(tensor(tensors[name], base.place), requires_grad=False)
        masters[name], weights[name] = made[id(weight)], weight
    return FullAdapter(masters, weights)
