"""Decoding with mlx-lm's key/value caches, for one row or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from finetune_local.spec.batch import Floats
from finetune_local.spec.tuners import VirtualIds
from finetune_local.system.messages import msg
from finetune_local_backends.mlx.base.model import Model
from finetune_local_backends.mlx.memory import guard
from finetune_local_backends.virtual import row_with

_CHUNK = 512


class MlxDecoder:
    """See Decoder.

    Each prompt is read alone, in chunks, without padding; then the caches are joined with padding on the left, so that a row's
    result does not depend on its neighbours.
    """

    def __init__(self, model: Model, virtual: VirtualIds) -> None:
        self._model, self._virtual = model, virtual
        self._cache: list[Any] | None = None
        self._rows = 0
        self._length = 0

    def feed(self, rows: Sequence[Sequence[int]]) -> Floats:
        """See Decoder."""
        if not rows or any(len(row) == 0 for row in rows):
            raise ValueError("each row needs at least one token")
        if self._cache is not None and (len(rows) != self._rows or len({len(row) for row in rows}) != 1):
            raise ValueError(f"later calls give equally many tokens to each of the {self._rows} rows")
        if self._cache is None and self._virtual.count:
            vocabulary, size = self._model.vocabulary, self._virtual.ensemble_size
            rows = [row_with(row, vocabulary, self._virtual, number % size) for number, row in enumerate(rows)]
        self._length += max(len(row) for row in rows)
        self._model.check_length(self._length)
        with guard(msg("generate a text of this length")):
            if self._cache is None:
                logits = self._begin(rows)
            else:
                logits = self._read(mx.array([list(row) for row in rows], mx.int32), self._cache)
        return np.array(logits)

    def _begin(self, rows: Sequence[Sequence[int]]) -> mx.array:
        from mlx_lm.models.cache import make_prompt_cache

        caches, logits = [], []
        for row in rows:
            cache = make_prompt_cache(self._model.module)
            logits.append(self._read(mx.array([list(row)], mx.int32), cache))
            caches.append(cache)
        self._rows = len(rows)
        if len(rows) == 1:
            self._cache = caches[0]
        else:
            self._cache = [type(layer[0]).merge(list(layer)) for layer in zip(*caches, strict=True)]
            mx.eval([c.state for c in self._cache])
        return mx.concatenate(logits)

    def _read(self, ids: mx.array, cache: list[Any]) -> mx.array:
        """Append ids (rows, n) and return the last logits, (rows, vocabulary) float32."""
        for start in range(0, ids.shape[1], _CHUNK):
            hidden = self._model.hidden(ids[:, start : start + _CHUNK], cache)
            mx.eval(hidden, [c.state for c in cache])
        logits = self._model.head(hidden[:, -1:])[:, -1].astype(mx.float32)
        mx.eval(logits)
        return logits
