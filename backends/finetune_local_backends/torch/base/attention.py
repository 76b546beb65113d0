"""Causal attention for training in bf16 on a CPU, where torch's fused kernel is the slowest part of a step.

At the lengths of chats two batched products in bf16 take half its time. Probabilities are recomputed in backward, so nothing of size
length² is saved. Everything else (masks, caches, long rows, other types) uses torch's kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import Function

NAME = "finetune_local_cpu"
LONGEST = 1024


def register() -> str:
    """Register the function with transformers, with sdpa's masks; returns its name."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """query (rows, heads, length, d), key and value (rows, fewer heads, length, d) to (rows, length, heads, d)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    plain = (
        query.dtype == torch.bfloat16
        and attention_mask is None
        and not dropout
        and more.get("is_causal") in (None, True)
        and getattr(module, "is_causal", True)
        and all(more.get(name) is None for name in ("position_bias", "softcap", "s_aux"))
        and query.shape[2] == key.shape[2] <= LONGEST
        and query.shape[-1] == value.shape[-1]
    )
    if not plain:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return result
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mixed: torch.Tensor = CausalAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return mixed.transpose(1, 2).contiguous(), None


class CausalAttention(Function):
    """softmax(s·Q·Kᵀ + causal)·V, row by row; the softmax is taken in fp32."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Shapes as in attention(); the result is (rows, heads, length, d)."""
        result = torch.empty(query.shape, dtype=query.dtype)
        future = _future(query.shape[2])
        for row in range(query.shape[0]):
            share = _probabilities(query[row], key[row], scale, future).to(query.dtype)
            result[row] = torch.bmm(share, value[row]).view(result[row].shape)
        ctx.save_for_backward(query, key, value, result)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """With P the probabilities: dV = Pᵀ·g, dS = s·P∘(g·Vᵀ − Σ g∘o), dQ = dS·K, dK = dSᵀ·Q."""
        query, key, value, result = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        future = _future(query.shape[2])
        for row in range(query.shape[0]):
            share = _probabilities(query[row], key[row], ctx.scale, future)
            grad = _grouped(grads[0][row], key.shape[1])
            d_value[row] = torch.bmm(share.to(query.dtype).transpose(1, 2), grad)
            along = (grad.float() * _grouped(result[row], key.shape[1]).float()).sum(-1, keepdim=True)
            d_score = torch.bmm(grad, value[row].transpose(1, 2)).float().sub_(along).mul_(share).mul_(ctx.scale)
            small = d_score.to(query.dtype)
            d_query[row] = torch.bmm(small, key[row]).view(query[row].shape)
            d_key[row] = torch.bmm(small.transpose(1, 2), _grouped(query[row], key.shape[1]))
        return d_query, d_key, d_value, None


def _grouped(heads: torch.Tensor, groups: int) -> torch.Tensor:
    """(heads, length, d) to (groups, heads/groups · length, d): query heads that share a key head are adjacent."""
    return heads.reshape(groups, -1, heads.shape[-1])


def _future(length: int) -> torch.Tensor:
    return torch.full((length, length), float("-inf")).triu_(1)


def _probabilities(query: torch.Tensor, key: torch.Tensor, scale: float, future: torch.Tensor) -> torch.Tensor:
    """fp32 (groups, heads/groups · length, length) of one row."""
    scores = torch.bmm(_grouped(query, key.shape[0]), key.transpose(1, 2)).float().mul_(scale)
    length = key.shape[1]
    scores.view(key.shape[0], -1, length, length).add_(future)
    return torch.softmax(scores, -1)
