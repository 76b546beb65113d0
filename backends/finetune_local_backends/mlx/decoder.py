"""Growing texts with mlx-lm's key/value caches: one row, or many side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from finetune_local.backend import Floats
from finetune_local_backends.mlx.memory import guard
from finetune_local_backends.virtual import row_with

if TYPE_CHECKING:
    from finetune_local_backends.mlx.session import MlxSession

_CHUNK = 512


class MlxDecoder:
    """See Decoder.

    Each prompt is read alone, in chunks, without padding; then the caches are joined with padding on the left, so that a
    row's numbers do not depend on its neighbours.
    """

    def __init__(self, session: MlxSession) -> None:
        self._session = session
        self._adapter = session.active
        self._virtual = session.virtual()
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
            vocabulary, ensemble_size = self._session.model.vocabulary, self._virtual.ensemble_size
            rows = [row_with(row, vocabulary, self._virtual, number % ensemble_size) for number, row in enumerate(rows)]
        self._length += max(len(row) for row in rows)
        self._session.check_length(self._length)
        with self._session.using(self._adapter), guard("generating"):
            if self._cache is None:
                logits = self._begin(rows)
            else:
                logits = self._read(mx.array([list(row) for row in rows], mx.int32), self._cache)
        return np.array(logits)

    def _begin(self, rows: Sequence[Sequence[int]]) -> mx.array:
        from mlx_lm.models.cache import make_prompt_cache

        caches, logits = [], []
        for row in rows:
            cache = make_prompt_cache(self._session.model.module)
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
        model = self._session.model
        for start in range(0, ids.shape[1], _CHUNK):
            hidden = model.hidden(ids[:, start : start + _CHUNK], cache)
            mx.eval(hidden, [c.state for c in cache])
        logits = model.head(hidden[:, -1:])[:, -1].astype(mx.float32)
        mx.eval(logits)
        return logits
