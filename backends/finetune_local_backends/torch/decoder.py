"""The model's head on hidden states, and decoding with a key/value cache.

A decoder reads prompts of any lengths first, then equally many tokens for each row. The head returns log-probabilities of chosen
tokens, so that the logits of a batch are never computed at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from finetune_local.spec.batch import Floats
from finetune_local.spec.tuners import VirtualIds
from finetune_local.system.errors import Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.torch.base.load import Base
from finetune_local_backends.torch.kernels import TokenLogProbs
from finetune_local_backends.torch.layers.wrapped import WrappedModule
from finetune_local_backends.torch.memory import guard
from finetune_local_backends.virtual import row_with

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}


class TorchDecoder:
    """See Decoder. Shorter prompts are padded on the left and the padding is masked, so a row's logits do not depend on the others.
    Without padding there is no mask."""

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
        """Mask and positions if there is padding; empty otherwise, so that the model computes its own."""
        if not self._started and padding.any():
            real = torch.arange(ids.shape[1])[None] >= torch.from_numpy(padding)[:, None]
            self._mask = real.long().to(ids.device)
        elif self._mask is not None:
            self._mask = torch.cat([self._mask, torch.ones_like(ids)], 1)
        if self._mask is None:
            return {}
        positions = (self._mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        return {"attention_mask": self._mask, "position_ids": positions}


class Head:
    """logits = cap·tanh(s·head(h)/cap): Gemma 2 and 3 cap, Granite divides, Cohere multiplies, most do neither."""

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config()
        self._model = model
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        cap = getattr(config, "final_logit_softcapping", None)
        self.cap = None if cap is None else float(cap)
        self._checked = False

    @property
    def linear(self) -> nn.Linear:
        """The head's linear layer, wrapped or not."""
        found: nn.Linear = self._model.get_output_embeddings()
        return found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., d) to fp32 logits (..., vocabulary)."""
        logits = self.linear(hidden).float() * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def log_probabilities(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """log p of targets (n,) at hidden states (n, d), as (n,) fp32, including an adapter at the head."""
        linear = self.linear
        part: tuple[torch.Tensor, ...] = ()
        weight = linear.weight
        if isinstance(linear, WrappedModule) and (layer := linear.layers.layer) is not None:
            own = layer.head_weight(linear.base)
            weight, part = linear.weight if own is None else own, layer.head_part(hidden)
        result: torch.Tensor = TokenLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden, weight, linear.bias, targets, self.scale, self.cap, torch.is_grad_enabled(), *part
        )
        return result

    def check(self, model: Any, body: Any) -> None:
        """Check once that this head, applied to the body's states, returns the model's logits. Raises Unsupported if it does not."""
        if self._checked:
            return
        ids = torch.arange(4, 12, device=self.linear.weight.device)[None] % self.linear.weight.shape[0]
        with torch.no_grad():
            expected = model(input_ids=ids, use_cache=False).logits.float()
            found = self.logits(body(input_ids=ids, use_cache=False).last_hidden_state)
        gap = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
        if not gap <= _TOLERANCE[self.linear.weight.dtype]:
            raise Unsupported(
                msg(
                    "models of type '{family}' compute their logits in a way this version does not support (off by "
                    "{gap}), so training would be wrong. Choose a model of another family.",
                    family=model.config.model_type,
                    gap=f"{gap:.1%}",
                )
            )
        self._checked = True
