"""Several adapters at one wrapped module in one pass of the base: each computes for its rows of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finetune_local.system.errors import Unsupported
from finetune_local_backends.multi_adapter import MIXED, Rows
from finetune_local_backends.torch.base.quantised import QuantisedLinear
from finetune_local_backends.torch.kernels import FrozenLinear
from finetune_local_backends.torch.layers.wrapped import AdapterLayer


class SplitLayer(AdapterLayer):
    """See SplitLayer in multi_adapter.py."""

    def __init__(self, _: AdapterLayer, rows: Rows) -> None:
        super().__init__()
        self._rows = rows
        self.parts: dict[int, AdapterLayer] = {}

    def forward(self, base: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The base is computed once for all where the layers can use its output, else for each part."""
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
    """Arguments with only these rows of every tensor that has one for each row."""
    if isinstance(value, torch.Tensor):
        return value[part] if value.dim() and len(value) == total else value
    if isinstance(value, tuple | list):
        return type(value)(_of_rows(item, part, total) for item in value)
    if isinstance(value, dict):
        return {key: _of_rows(item, part, total) for key, item in value.items()}
    return value


def _joined(parts: Sequence[Any]) -> Any:
    """Outputs of some rows each as one: tensors, or tuples that begin with one (attention returns its weights second)."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(list(parts))
    return (torch.cat([part[0] for part in parts]), *parts[0][1:])


def _frozen(base: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """base(...); where it is linear, nothing of the size of the weight is saved for backward."""
    if isinstance(base, nn.Linear | QuantisedLinear):
        return FrozenLinear.apply(args[0], base, True)  # type: ignore[no-untyped-call]
    return base(*args, **kwargs)
