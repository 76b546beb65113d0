"""Several adapters at one wrapped module in one pass of the base: each computes for its rows of the batch."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from finetune_local.system.errors import Unsupported
from finetune_local_backends.mlx.layers.wrapped import AdapterLayer
from finetune_local_backends.multi_adapter import MIXED, Rows


class SplitLayer(AdapterLayer):
    """See SplitLayer in multi_adapter.py."""

    def __init__(self, layer: AdapterLayer, rows: Rows) -> None:
        super().__init__(layer.module, {})
        self._rows = rows
        self.parts: dict[int, AdapterLayer] = {}

    def __call__(self, base: Any, *args: Any, **kwargs: Any) -> Any:
        """The base is computed once for all where the layers can use its output, else for each part."""
        rows = self._rows
        if not any(isinstance(a, mx.array) and a.shape[:1] == (rows.total,) for a in (*args, *kwargs.values())):
            raise Unsupported(MIXED)
        y = base(*args, **kwargs) if all(layer.shares_base for layer in self.parts.values()) else None
        done = []
        for part, owner in zip(rows.slices, rows.owners, strict=True):
            layer = self.parts.get(owner)
            if y is not None:
                done.append(y[part] if layer is None else layer.from_output(base, args[0][part], y[part]))
                continue
            some, more = _of_rows(args, part, rows.total), _of_rows(kwargs, part, rows.total)
            done.append(base(*some, **more) if layer is None else layer(base, *some, **more))
        return mx.concatenate(done)


def _of_rows(value: Any, part: slice, total: int) -> Any:
    """Arguments with only these rows of every array that has one for each row."""
    if isinstance(value, mx.array):
        return value[part] if value.shape[:1] == (total,) else value
    if isinstance(value, tuple | list):
        return type(value)(_of_rows(item, part, total) for item in value)
    if isinstance(value, dict):
        return {key: _of_rows(item, part, total) for key, item in value.items()}
    return value
