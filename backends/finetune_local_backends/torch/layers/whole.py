"""Full copies of embeddings, heads and norms on torch, as selected by spec/low_rank/full_copies.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call

from finetune_local.spec.low_rank.full_copies import BIAS, is_full_copy, is_table, kind_of, module_of, shape_of
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.wrapped import AdapterLayer, bare, module_at


class WholeLayer(AdapterLayer):
    """A trained weight (and a norm's bias) that replaces the module's; fp32, cast to the base's type when used."""

    def __init__(self, own: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.own = dict(own)
        self._cast: tuple[tuple[int, int], torch.Tensor] | None = None

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The module's output with the trained copies in place of its parameters."""
        dtype = cast(torch.Tensor, base.weight).dtype
        used = {name: value.to(dtype) for name, value in self.own.items() if name != "weight"}
        return cast(torch.Tensor, functional_call(base, {**used, "weight": self.weight(dtype)}, args, kwargs))

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """The copy in the base's type; cast only once outside training, since tables are large."""
        own = self.own["weight"]
        if own.dtype == dtype or own.requires_grad:
            return own.to(dtype)
        if self._cast is None or self._cast[0] != (id(own), own._version) or self._cast[1].dtype != dtype:
            self._cast = (id(own), own._version), own.detach().to(dtype)
        return self._cast[1]

    def head_weight(self, base: nn.Module) -> torch.Tensor | None:
        """See AdapterLayer."""
        return self.weight(cast(torch.Tensor, base.weight).dtype)

    def head_part(self, hidden: torch.Tensor) -> tuple[()]:  # type: ignore[override]
        """See AdapterLayer: nothing is added."""
        return ()


def whole_layers(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    """The layers by their modules' names. Raises ModelError if the base has no such weight."""
    own: dict[str, dict[str, nn.Parameter]] = {}
    for target in plan.targets:
        if is_full_copy(target):
            module = module_of(target)
            weight = getattr(bare(module_at(base, module)), "weight", None)
            first = 1 if is_table(target) else 0  # a table may have another number of rows
            if not isinstance(weight, torch.Tensor) or tuple(weight.shape[first:]) != shape_of(target)[first:]:
                raise ModelError(
                    msg(
                        "the base has no {module} of shape {shape}: the adapter belongs to another model.",
                        module=target.module,
                        shape=shape_of(target),
                    )
                )
            own.setdefault(module, {})["weight"] = given[PREFIX + target.module]
    for target in plan.targets:
        if target.module.endswith(BIAS) and kind_of(target.module) == "norms":
            module = target.module.removesuffix(BIAS)
            if module in own:
                own[module]["bias"] = given[PREFIX + target.module]
    return {module: WholeLayer(values) for module, values in own.items()}
