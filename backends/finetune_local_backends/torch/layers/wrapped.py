"""Modules of a base wrapped for adapter layers.

A tuner that works at modules (linear layers, embeddings, norms, a block's attention or MLP) defines AdapterLayers and a function that
maps modules to layers; `TorchLayers` does the rest. Without an active layer a wrapped module behaves like the module itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from finetune_local.spec.batch import Floats
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.tuners import tuner_of
from finetune_local.system.errors import ModelError, Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.adapter import ActiveLayers, LayeredAdapter, shared_with
from finetune_local_backends.multi_adapter import MIXED, Rows
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.base.quantised import QuantisedLinear
from finetune_local_backends.torch.kernels import FrozenLinear
from finetune_local_backends.torch.tuners import TorchAdapter, tensor


class AdapterLayer(nn.Module):
    """One adapter's layer at one wrapped module. Its parameters are the adapter's."""

    module: str = ""
    """The dotted name of its module."""

    shares_base: bool = False
    """Whether from_output() is implemented: the output can be computed from the module's output."""

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The output of the module `base` with this adapter."""
        raise NotImplementedError

    def from_output(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """forward() given y = base(x), which is computed once for the rows of several adapters."""
        raise NotImplementedError

    def update(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The update added to y = base(x), in the output's shape; for tuners whose adapters can be summed."""
        raise NotImplementedError

    @classmethod
    def fused(
        cls,
        base: nn.Module,  # noqa: ARG003
        x: torch.Tensor,  # noqa: ARG003
        parts: Sequence[tuple[slice, AdapterLayer]],  # noqa: ARG003
    ) -> torch.Tensor | None:
        """The output of several layers of this class, each for its rows of x; None if no kernel computes them together."""
        return None

    def head_part(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """At the head: i (n, rank) and B (vocabulary, rank), fp32, whose product i·Bᵀ is added to the logits of hidden (n, d)."""
        raise NotImplementedError

    def head_weight(self, base: nn.Module) -> torch.Tensor | None:
        """At the head: a matrix (vocabulary, d) that replaces the base's, or None."""
        return None

    def refresh(self) -> None:
        """Recompute what is derived from the parameters. Called after they have changed."""

    def penalty(self) -> torch.Tensor | None:
        """This layer's term of the tuner's regularisation, a scalar, or None."""
        return None


class SummedLayer(AdapterLayer):
    """Several adapters' layers at one module, or one with a weight other than 1: y + Σ weight · update."""

    def __init__(self, parts: Sequence[tuple[AdapterLayer, float]]) -> None:
        super().__init__()
        self._parts = list(parts)

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x to the output's shape."""
        y: torch.Tensor = base(x)
        total = torch.stack([layer.update(base, x, y).float() * weight for layer, weight in self._parts]).sum(0)
        return (y + total).to(y.dtype)

    def head_part(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See AdapterLayer: the factors of all layers, concatenated."""
        found = [(layer.head_part(hidden), weight) for layer, weight in self._parts]
        return torch.cat([i * weight for (i, _), weight in found], 1), torch.cat([b for (_, b), _ in found], 1)


class WrappedModule(nn.Module):
    """A module of the base with adapter layers. All other attributes are the module's."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.layers: ActiveLayers[AdapterLayer] = ActiveLayers(SummedLayer)
        self.training = base.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, or that of the active layer."""
        layer = self.layers.layer
        return self.base(*args, **kwargs) if layer is None else layer(self.base, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """The module's attribute: a model's code reads attributes of its modules."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


@dataclass(frozen=True)
class ModulePlace:
    """See Place: an attribute of a module."""

    owner: nn.Module
    name: str

    def get(self) -> nn.Module:
        """See Place."""
        found: nn.Module = getattr(self.owner, self.name)
        return found

    def put(self, value: nn.Module) -> None:
        """See Place."""
        setattr(self.owner, self.name, value)


class TorchLayers(LayeredAdapter[nn.Parameter, AdapterLayer], TorchAdapter):
    """See LayeredAdapter and TorchAdapter."""

    wrapper = WrappedModule

    def train(self, trained: frozenset[str]) -> None:
        """See TorchAdapter."""
        super().train(trained)
        for _, layer in self.wrapped:
            layer.train(bool(trained))

    def after_step(self) -> None:
        """See Adapter."""
        for _, layer in self.wrapped:
            layer.refresh()

    def penalty(self) -> torch.Tensor | None:
        """See TorchAdapter: the sum over the layers."""
        parts = [part for _, layer in self.wrapped if (part := layer.penalty()) is not None]
        return torch.stack(parts).sum() if parts else None


Placing = Callable[[Base, AdapterPlan, Mapping[str, nn.Parameter]], Mapping[str, AdapterLayer]]
"""Returns an adapter's layers by the dotted names of their modules. Raises ModelError if the base lacks one."""


def attach_layers(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats], placing: Placing) -> TorchLayers:
    """An adapter of the layers that `placing` returns for parameters with the values of `tensors`."""
    names = tuner_of(plan).shapes(plan)  # their order determines the order in which gradients are summed
    given: dict[str, nn.Parameter] = {}
    for key in names:
        same = next((other for other in shared_with(key, names, tensors) if other in given), None)
        given[key] = given[same] if same else nn.Parameter(tensor(tensors[key], base.place), requires_grad=False)
    layers = placing(base, plan, given)
    places = [(place_at(base, path), layer.eval()) for path, layer in layers.items()]
    for path, layer in layers.items():
        layer.module = path
    return TorchLayers(given, places)


def bare(module: nn.Module) -> nn.Module:
    """The module inside a wrapped one, or the module itself."""
    return module.base if isinstance(module, WrappedModule) else module


def module_at(base: Base, path: str) -> nn.Module:
    """The module with a dotted name, wrapped or not. Raises ModelError if there is none."""
    return place_at(base, path).get() if path else base.model


def place_at(base: Base, path: str) -> ModulePlace:
    """The place of the module with a dotted name. Raises ModelError if there is none."""
    owner: nn.Module = base.model
    parts = path.split(".")
    for number, part in enumerate(parts, 1):
        found = getattr(owner, part, None)
        if not isinstance(found, nn.Module):
            raise ModelError(
                msg(
                    "the base has no module {path}. The adapter belongs to another model, or this family names its "
                    "layers differently once loaded.",
                    path=path,
                )
            )
        if number < len(parts):
            owner = bare(found)
    return ModulePlace(owner, parts[-1])


def linear_at(base: Base, target: Target) -> nn.Linear | QuantisedLinear:
    """The base's linear layer of a target. A size of 0 means unknown. Raises ModelError if it is missing or has another shape."""
    module = bare(module_at(base, target.module))
    if not isinstance(module, nn.Linear | QuantisedLinear):
        raise ModelError(
            msg(
                "{module} is a {kind}; an adapter needs a linear layer.",
                module=target.module,
                kind=type(module).__name__,
            )
        )
    known = (target.out_features or module.out_features, target.in_features or module.in_features)
    if (module.out_features, module.in_features) != known:
        raise ModelError(
            msg(
                "{module} is {rows} × {columns} in the base, but the adapter was made for {height} × {width}.",
                module=target.module,
                rows=module.out_features,
                columns=module.in_features,
                height=target.out_features,
                width=target.in_features,
            )
        )
    return module


class SplitLayer(AdapterLayer):
    """See SplitLayer in multi_adapter.py."""

    def __init__(self, _: AdapterLayer, rows: Rows) -> None:
        super().__init__()
        self._rows = rows
        self.parts: dict[int, AdapterLayer] = {}

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Compute the base once for all rows if every layer can use its output, otherwise once per part."""
        rows = self._rows
        x = args[0] if args else None
        if not isinstance(x, torch.Tensor) or len(x) != rows.total:
            x = next((v for v in kwargs.values() if isinstance(v, torch.Tensor) and len(v) == rows.total), None)
        if x is None:
            raise Unsupported(MIXED)
        if all(layer.shares_base for layer in self.parts.values()):
            return self._from_one_pass(base, x, *args, **kwargs)
        done = []
        for part, owner in zip(rows.slices, rows.owners, strict=True):
            some, more = _of_rows(args, part, rows.total), _of_rows(kwargs, part, rows.total)
            layer = self.parts.get(owner)
            done.append(base(*some, **more) if layer is None else layer(base, *some, **more))
        return _joined(done)

    def _from_one_pass(self, base: nn.Module, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        own = [(part, self.parts.get(owner)) for part, owner in zip(self._rows.slices, self._rows.owners, strict=True)]
        filled = [(part, layer) for part, layer in own if layer is not None]
        kinds = {type(layer) for _, layer in filled}
        if len(kinds) == 1 and (made := kinds.pop().fused(base, x, filled)) is not None:
            return made
        whole = _frozen(base, *args, **kwargs)
        y = whole[0] if isinstance(whole, tuple) else whole
        done = torch.cat(
            [y[part] if layer is None else layer.from_output(base, x[part], y[part]) for part, layer in own]
        )
        return (done, *whole[1:]) if isinstance(whole, tuple) else done


def _of_rows(value: Any, part: slice, total: int) -> Any:
    """The arguments with every tensor that has one entry per row cut to these rows."""
    if isinstance(value, torch.Tensor):
        return value[part] if value.dim() and len(value) == total else value
    if isinstance(value, tuple | list):
        return type(value)(_of_rows(item, part, total) for item in value)
    if isinstance(value, dict):
        return {key: _of_rows(item, part, total) for key, item in value.items()}
    return value


def _joined(parts: Sequence[Any]) -> Any:
    """Concatenate the outputs for parts of the rows: tensors, or tuples that start with one (attention also returns its weights)."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return (torch.cat([part[0] for part in parts]), *parts[0][1:])


def _frozen(base: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """base(...); for a linear layer nothing of the size of the weight is saved for backward."""
    if isinstance(base, nn.Linear | QuantisedLinear):
        return FrozenLinear.apply(args[0], base, True)  # type: ignore[no-untyped-call]
    return base(*args, **kwargs)
