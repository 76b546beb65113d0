"""A model's head apart from its body: hidden states in, logits or log-probabilities of chosen tokens out.

So the full logits of a batch are never made. Families bend their logits in their own ways; that the bend is known here is
checked on a few tokens against the model itself before anything is trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finetune_local.system.errors import Unsupported
from finetune_local.system.messages import msg
from finetune_local_backends.torch.kernels import TokenLogProbs
from finetune_local_backends.torch.layers.wrapped import WrappedModule

_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}


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
        """The last layer, wrapped or not."""
        found: nn.Linear = self._model.get_output_embeddings()
        return found

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., d) to fp32 logits (..., vocabulary)."""
        logits = self.linear(hidden).float() * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def log_probabilities(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """hidden (n, d), targets (n,) to (n,) fp32; with the part of an adapter at the head."""
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
        """Check once that this head on the body's states returns the model's logits. Raises Unsupported where it does not."""
        if self._checked:
            return
        ids = torch.arange(4, 12, device=self.linear.weight.device)[None] % self.linear.weight.shape[0]
        with torch.no_grad():
            wanted = model(input_ids=ids, use_cache=False).logits.float()
            got = self.logits(body(input_ids=ids, use_cache=False).last_hidden_state)
        gap = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
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
