"""LoRA and its variants on torch. The formulas and names are those of spec/tuners/low_rank.py and of PEFT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from finetune_local.spec.batch import Batch, Floats
from finetune_local.spec.low_rank.full_copies import is_full_copy
from finetune_local.spec.low_rank.peft import A0, B0, BIAS, EMBEDDING_A, EMBEDDING_B, MAGNITUDE, A, B, bias_name
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.targets import is_embedding
from finetune_local.spec.tuners import PREFIX
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local_backends.torch import kernels
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.layers.whole import whole_layers
from finetune_local_backends.torch.layers.wrapped import (
    AdapterLayer,
    TorchLayers,
    attach_layers,
    bare,
    linear_at,
    module_at,
)
from finetune_local_backends.torch.tuners import TorchAdapter


@dataclass(frozen=True)
class Shift:
    """A trained bias and the base's bias that it replaces; both (out,) fp32."""

    bias: nn.Parameter
    own: torch.Tensor

    def of(self, y: torch.Tensor) -> torch.Tensor:
        """y (..., out) of the module with the trained bias in place of the base's."""
        return y + (self.bias - self.own).to(y.dtype)

    def as_product(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The difference as a product of rank 1 with the head's rows: ones (n, 1) and a column (out, 1)."""
        return torch.ones(hidden.shape[0], 1, device=hidden.device), (self.bias - self.own)[:, None]


class LowRankLayer(AdapterLayer):
    """A (rank, in), B (out, rank), and depending on the settings: the initial product that is subtracted (PiSSA), a trained bias, and the
    magnitude (out,) with the constant squared row norms of W (DoRA)."""

    def __init__(
        self,
        a: nn.Parameter,
        b: nn.Parameter,
        scale: float,
        dropout: float,
        dora: tuple[nn.Parameter, nn.Module] | None = None,
        start: tuple[torch.Tensor, torch.Tensor] | None = None,
        shift: Shift | None = None,
    ) -> None:
        super().__init__()
        self.a, self.b, self.scale, self.dropout = a, b, scale, dropout
        self.start, self.shift = start, shift
        self.magnitude: nn.Parameter | None = None
        self.squares: torch.Tensor | None = None
        self._norm: tuple[tuple[int, int], torch.Tensor] | None = None
        if dora is not None:
            self.magnitude = dora[0]
            self.squares = kernels.dense_weight(dora[1], torch.float32).square().sum(1)

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        a, b = self.factors()
        norm = None if self.squares is None else self._row_norms(base, a, b, self.squares)
        result: torch.Tensor
        if (dropped := self.dropped(x)) is not x:
            result = kernels.low_rank_plain(x, dropped, a, b, self.magnitude, norm, self.scale, base)
        else:
            result = kernels.LowRankLinear.apply(  # type: ignore[no-untyped-call]
                x, a, b, self.magnitude, norm, self.scale, base
            )
        return result if self.shift is None else self.shift.of(result)

    @property
    def shares_base(self) -> bool:  # type: ignore[override]  # DoRA with dropout computes the base a second time
        """See AdapterLayer."""
        return not (self.dropout and self.magnitude is not None)

    def from_output(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer."""
        a, b = self.factors()
        norm = None if self.squares is None else self._row_norms(base, a, b, self.squares)
        result = kernels.low_rank_from_output(self.dropped(x), y, a, b, self.magnitude, norm, self.scale, base)
        return result if self.shift is None else self.shift.of(result)

    def update(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer; without DoRA."""
        result = kernels.low_rank_update(self.dropped(x), *self.factors(), self.scale)
        return result if self.shift is None else self.shift.of(result)

    @classmethod
    def fused(
        cls, base: nn.Module, x: torch.Tensor, parts: Sequence[tuple[slice, AdapterLayer]]
    ) -> torch.Tensor | None:
        """See AdapterLayer: plain updates by one kernel."""
        layers = [cast(LowRankLayer, layer) for _, layer in parts]
        if any(layer.dropout or layer.magnitude is not None or layer.shift is not None for layer in layers):
            return None
        factors = [factor for layer in layers for factor in layer.factors()]
        result: torch.Tensor = kernels.LowRankRows.apply(  # type: ignore[no-untyped-call]
            x, base, [part for part, _ in parts], [layer.scale for layer in layers], *factors
        )
        return result

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B of the whole update of W.

        B·A − B0·A0 = [B − B0, B0]·[A; A − A0]: small numbers, and exactly zero at the start, also in bf16.
        """
        if self.start is None:
            return self.a, self.b
        a0, b0 = self.start
        return torch.cat([self.a, self.a - a0]), torch.cat([self.b - b0, b0], 1)

    def dropped(self, x: torch.Tensor) -> torch.Tensor:
        """x with dropout in training, else x itself."""
        if self.dropout and self.training and torch.is_grad_enabled():
            return functional.dropout(x, self.dropout)
        return x

    def head_part(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See AdapterLayer."""
        a, b = self.factors()
        inner = functional.linear(self.dropped(hidden).float(), a) * self.scale
        if self.shift is None:
            return inner, b
        ones, column = self.shift.as_product(hidden)
        return torch.cat([inner, ones], 1), torch.cat([b, column], 1)

    def refresh(self) -> None:
        """See AdapterLayer."""
        self._norm = None

    def _row_norms(self, base: nn.Module, a: torch.Tensor, b: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
        """DoRA's norms, cached until A or B change: for all micro-batches of a step, and for every token of an answer."""
        version = (self.a._version, self.b._version)
        if self._norm is None or self._norm[0] != version:
            with torch.no_grad():
                weight = kernels.dense_weight(base, self.a.dtype)
                self._norm = version, kernels.row_norms(weight, a, b, self.scale, squares)
        return self._norm[1]


class EmbeddingLayer(AdapterLayer):
    """A (rank, vocabulary) and B (width, rank) at an embedding: its rows plus s·B·A[:, token], scaled like its rows."""

    def __init__(self, a: nn.Parameter, b: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.scale = a, b, scale

    def forward(self, base: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) to (..., width)."""
        y: torch.Tensor = base(ids)
        return (y + self.update(base, ids, y)).to(y.dtype)

    def update(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer; x are ids."""
        update = functional.embedding(x, self.a.t()) @ self.b.t() * self.scale
        factor = getattr(base, "embed_scale", None)  # Gemma multiplies its embeddings inside the module
        return update if factor is None else update * factor


class BiasLayer(AdapterLayer):
    """A trained bias at a module that has no update."""

    def __init__(self, shift: Shift) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The module's output plus the difference of the biases."""
        return self.shift.of(base(*args, **kwargs))

    def update(self, base: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """See AdapterLayer."""
        return self.shift.of(torch.zeros_like(y))

    def head_part(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See AdapterLayer."""
        return self.shift.as_product(hidden)


def _place(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, AdapterLayer]:
    settings = cast(LowRankSettings, plan.settings)
    shifts = _shifts(base, plan, given)
    layers: dict[str, AdapterLayer] = {}
    for target in plan.targets:
        name, scale = PREFIX + target.module, settings.scale_of(target.module)
        if target.in_features == 0 or is_full_copy(target):
            continue
        if is_embedding(target.module):
            _check_embedding(base, target)
            layers[target.module] = EmbeddingLayer(given[name + EMBEDDING_A], given[name + EMBEDDING_B], scale)
            continue
        layer = linear_at(base, target)
        layers[target.module] = LowRankLayer(
            given[name + A],
            given[name + B],
            scale,
            settings.dropout,
            (given[name + MAGNITUDE], cast(nn.Module, layer)) if settings.use_dora else None,
            (given[name + A0], given[name + B0]) if settings.from_weights else None,
            shifts.pop(target.module, None),
        )
    whole = whole_layers(base, plan, given)
    return layers | {module: BiasLayer(shift) for module, shift in shifts.items() if module not in whole} | whole


def _shifts(base: Base, plan: AdapterPlan, given: Mapping[str, nn.Parameter]) -> dict[str, Shift]:
    """The trained biases by module. Raises ModelError if the base's module has none."""
    modules = {target.module for target in plan.targets}
    result: dict[str, Shift] = {}
    for target in plan.targets:
        if target.in_features == 0 and not is_full_copy(target):
            module = target.module.removesuffix(BIAS)
            own = getattr(bare(module_at(base, module)), "bias", None)
            if not isinstance(own, torch.Tensor) or own.shape != (target.out_features,):
                raise ModelError(
                    msg(
                        "the base has no {module} of {count} numbers: the adapter belongs to another model.",
                        module=target.module,
                        count=target.out_features,
                    )
                )
            result[module] = Shift(given[bias_name(target.module, modules)], own.detach().float())
    return result


def _check_embedding(base: Base, target: Target) -> None:
    """Raise ModelError if there is no such embedding."""
    module = bare(module_at(base, target.module))
    if not isinstance(module, nn.Embedding):
        raise ModelError(
            msg(
                "{module} is a {kind}; the adapter needs an embedding.",
                module=target.module,
                kind=type(module).__name__,
            )
        )
    if tuple(module.weight.shape) != (target.out_features, target.in_features):
        raise ModelError(
            msg(
                "{module} is {rows} × {columns} in the base, but the adapter was made for {height} × {width}.",
                module=target.module,
                rows=module.num_embeddings,
                columns=module.embedding_dim,
                height=target.out_features,
                width=target.in_features,
            )
        )


def attach(base: Base, plan: AdapterPlan, tensors: Mapping[str, Floats]) -> TorchLayers:
    """See adapter.py."""
    return attach_layers(base, plan, tensors, _place)


class _Measured(AdapterLayer):
    """A layer that also sums the squared size of its update at the real tokens. `real` (rows, length) bool."""

    def __init__(self, layer: LowRankLayer, real: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.real, self.size = layer, real, 0.0

    def forward(self, base: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """As the layer. ‖B·i‖² = i·(BᵀB)·i with i = A·x, which needs nothing of the output's width."""
        a, b = self.layer.factors()
        inner = x.reshape(-1, x.shape[-1])[self.real.flatten()].to(a.dtype) @ a.t()
        self.size += float(((inner @ (b.t() @ b)) * inner).sum()) * self.layer.scale**2
        result: torch.Tensor = self.layer(base, x)
        return result


@torch.no_grad()
def update_sizes(base: Base, adapter: TorchAdapter, batch: Batch) -> dict[str, float]:
    """See Session. `adapter` is the active one; layers without low-rank updates are skipped."""
    real = torch.from_numpy(np.arange(batch.ids.shape[1]) < batch.lengths[:, None]).to(base.place)
    wrapped = adapter.wrapped if isinstance(adapter, TorchLayers) else []
    measured = [(module, _Measured(layer, real)) for module, layer in wrapped if isinstance(layer, LowRankLayer)]
    try:
        for module, layer in measured:
            module.layers.layer = layer
        base.body(input_ids=torch.from_numpy(batch.ids.astype(np.int64)).to(base.place), use_cache=False)
    finally:
        for module, layer in measured:
            module.layers.layer = layer.layer
    return {layer.layer.module: layer.size for _, layer in measured}
