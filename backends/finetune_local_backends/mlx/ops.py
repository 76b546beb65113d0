"""The array functions that objectives are written in, over MLX arrays. See spec/objectives."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx


class MlxOps:
    """See finetune_local.spec.objectives.Ops."""

    def sum(self, array: Any) -> Any:
        """Sum of all elements."""
        return cast(mx.array, array).sum()


OPS = MlxOps()
