"""Decoding with a key/value cache: prompts of any lengths first, then equally many tokens for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch

from finetune_local.spec.batch import Floats
from finetune_local.spec.tuners import VirtualIds
from finetune_local.system.messages import msg
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.head import Head
from finetune_local_backends.torch.memory import guard
from finetune_local_backends.virtual import row_with


class TorchDecoder:
    """See Decoder. Shorter prompts are padded on the left and the padding is masked, so a row's logits do not depend on
    the others; without padding no mask is made at all."""

    def __init__(self, base: Base, head: Head, virtual: VirtualIds) -> None:
        from transformers import DynamicCache

        self._base, self._head, self._virtual = base, head, virtual
        self._cache: Any = DynamicCache(config=base.model.config)
        self._mask: torch.Tensor | None = None
        self._started = False

    @torch.no_grad()
    def feed(self, rows: Sequence[Sequence[int]]) -> Floats:
        """See Decoder."""
        if not rows or min(len(row) for row in rows) == 0:
            raise ValueError("every row of a text needs at least one token")
        if not self._started and self._virtual.count:
            ensemble_size = self._virtual.ensemble_size
            rows = [
                row_with(row, self._base.vocabulary, self._virtual, i % ensemble_size) for i, row in enumerate(rows)
            ]
        longest = max(len(row) for row in rows)
        padding = np.array([longest - len(row) for row in rows])
        if self._started and padding.any():
            raise ValueError("after the prompts, each row takes equally many tokens")
        ids = torch.tensor(
            [[0] * int(n) + list(row) for n, row in zip(padding, rows, strict=True)], device=self._base.place
        )
        with guard(msg("generate a text of this length")):
            hidden = self._base.body(
                input_ids=ids, past_key_values=self._cache, use_cache=True, **self._places(ids, padding)
            )
            logits = self._head.logits(hidden.last_hidden_state[:, -1])
        self._started = True
        return cast(Floats, logits.cpu().numpy())

    def _places(self, ids: torch.Tensor, padding: np.ndarray) -> dict[str, torch.Tensor]:
        """Mask and positions where there is padding; nothing where there is none, so that the model makes its own."""
        if not self._started and padding.any():
            real = torch.arange(ids.shape[1])[None] >= torch.from_numpy(padding)[:, None]
            self._mask = real.long().to(ids.device)
        elif self._mask is not None:
            self._mask = torch.cat([self._mask, torch.ones_like(ids)], 1)
        if self._mask is None:
            return {}
        positions = (self._mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        return {"attention_mask": self._mask, "position_ids": positions}
