"""The hot path: autograd functions that save and compute only what training an adapter over frozen weights needs.

The tests compare each with a plain equivalent. Shapes: x (..., in), W (out, in), A (rank, in), B (out, rank).
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional

from finetune_local.spec.low_rank.settings import SMALLEST_NORM

# Numbers in one chunk of logits (64 MiB in fp32), whatever the vocabulary.
CHUNK_NUMBERS = 1 << 24


class FrozenBase(Protocol):
    """A layer over stored weights that can return them dense."""

    bias: nn.Parameter | None

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """W (out, in)."""
        ...


def dense_weight(base: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a linear layer in `dtype`, dequantised if it is stored quantised."""
    if isinstance(base, nn.Linear):
        return base.weight.detach().to(dtype)
    return cast(FrozenBase, base).dense(dtype)


def _bias(base: nn.Module, dtype: torch.dtype) -> torch.Tensor | None:
    bias = cast(FrozenBase, base).bias
    return None if bias is None else bias.detach().to(dtype)


class FrozenLinear(Function):
    """y = x·Wᵀ over a frozen layer, plus b with `with_bias`; nothing of the size of W is saved for backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, base: nn.Module, with_bias: bool) -> torch.Tensor:
        """See the class."""
        ctx.base = base
        return functional.linear(x, dense_weight(base, x.dtype), _bias(base, x.dtype) if with_bias else None)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """dx = g·W."""
        return grads[0] @ dense_weight(ctx.base, grads[0].dtype), None, None


class LowRankLinear(Function):
    """y = c ∘ (x·Wᵀ + s·(x·Aᵀ)·Bᵀ) + b, with c = m / ‖W + s·B·A‖ for DoRA and 1 without.

    A, B and m are fp32 masters and are cast to x's type here, so x is never cast; the two products into y and into dx are accumulated
    in place. `norm` (out,) is treated as a constant by the gradient (DoRA, arXiv:2402.09353, section 4.3). If A is frozen (LoRA-FA),
    x is not saved for backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        magnitude: torch.Tensor | None,
        norm: torch.Tensor | None,
        scale: float,
        base: nn.Module,
    ) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        dtype = x.dtype
        flat = x.reshape(-1, x.shape[-1])
        weight, bias = dense_weight(base, dtype), _bias(base, dtype)
        inner = flat @ a.to(dtype).t()
        ctx.scale, ctx.base, ctx.dtype = scale, base, dtype
        kept = flat if ctx.needs_input_grad[1] else None
        if magnitude is None or norm is None:
            y = functional.linear(flat, weight, bias).addmm_(inner, b.to(dtype).t(), alpha=scale)
            ctx.save_for_backward(kept, inner, a, b)
        else:
            y = functional.linear(flat, weight).addmm_(inner, b.to(dtype).t(), alpha=scale)
            ctx.save_for_backward(kept, inner, a, b, magnitude, norm, y)
            y = (y * (magnitude / norm)).to(dtype)  # c stays fp32: in bf16 it would be 1 until it has changed by 0.2 %
            if bias is not None:
                y += bias
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of x, A, B and m."""
        flat, inner, a, b, *dora = ctx.saved_tensors
        dtype, shape = ctx.dtype, grads[0].shape
        grad = grads[0].reshape(-1, shape[-1])
        d_magnitude = None
        if dora:
            magnitude, norm, product = dora
            if ctx.needs_input_grad[3]:
                d_magnitude = (grad * product).sum(0, dtype=torch.float32) / norm
            grad = (grad * (magnitude / norm)).to(dtype)
        d_inner = (grad @ b.to(dtype)).mul_(ctx.scale)
        d_a = (d_inner.t() @ flat).to(a.dtype) if ctx.needs_input_grad[1] else None
        d_b = (grad.t() @ inner).to(b.dtype).mul_(ctx.scale) if ctx.needs_input_grad[2] else None
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (grad @ dense_weight(ctx.base, dtype)).addmm_(d_inner, a.to(dtype)).view(*shape[:-1], -1)
        return d_x, d_a, d_b, d_magnitude, None, None, None


class LowRankRows(Function):
    """LowRankLinear of several adapters at once: y = x·Wᵀ + b, and s·(x·Aᵀ)·Bᵀ of each adapter added to its rows.

    Products with W cover all rows at once; no copies are made to join the parts.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, base: nn.Module, rows: list[slice], scales: list[float], *factors: torch.Tensor
    ) -> torch.Tensor:
        """x (rows, ..., in); `factors` are A and B of each in turn, `rows` and `scales` theirs."""
        dtype = x.dtype
        y = functional.linear(x, dense_weight(base, dtype), _bias(base, dtype))
        inners = []
        for part, scale, a, b in zip(rows, scales, factors[::2], factors[1::2], strict=True):
            inners.append(x[part].flatten(0, -2) @ a.to(dtype).t())
            y[part].view(-1, y.shape[-1]).addmm_(inners[-1], b.to(dtype).t(), alpha=scale)
        ctx.base, ctx.rows, ctx.scales = base, rows, scales
        ctx.save_for_backward(x, *inners, *factors)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of x, and of each A and B."""
        count = len(ctx.rows)
        x, *rest = ctx.saved_tensors
        inners, factors = rest[:count], rest[count:]
        dtype, grad = x.dtype, grads[0]
        d_x = grad @ dense_weight(ctx.base, dtype) if ctx.needs_input_grad[0] else None
        found: list[torch.Tensor | None] = []
        for n, (part, scale, inner) in enumerate(zip(ctx.rows, ctx.scales, inners, strict=True)):
            a, b = factors[2 * n : 2 * n + 2]
            own = grad[part].flatten(0, -2)
            d_inner = (own @ b.to(dtype)).mul_(scale)
            needed = ctx.needs_input_grad[4 + 2 * n : 6 + 2 * n]
            found.append((d_inner.t() @ x[part].flatten(0, -2)).to(a.dtype) if needed[0] else None)
            found.append((own.t() @ inner).to(b.dtype).mul_(scale) if needed[1] else None)
            if d_x is not None:
                d_x[part].view(-1, d_x.shape[-1]).addmm_(d_inner, a.to(dtype))
        return d_x, None, None, None, *found


def low_rank_update(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """s·(x·Aᵀ)·Bᵀ in x's type: x (..., in) to (..., out)."""
    return functional.linear(functional.linear(x, a.to(x.dtype)), b.to(x.dtype)) * scale


def low_rank_from_output(
    x: torch.Tensor,
    y: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    magnitude: torch.Tensor | None,
    norm: torch.Tensor | None,
    scale: float,
    base: nn.Module,
) -> torch.Tensor:
    """LowRankLinear from y = x·Wᵀ + b, by autograd's operations."""
    dtype = y.dtype
    update = low_rank_update(x, a, b, scale)
    if magnitude is None or norm is None:
        return y + update
    bias = _bias(base, dtype)
    result = ((y if bias is None else y - bias) + update) * (magnitude / norm)
    return (result if bias is None else result + bias).to(dtype)


def low_rank_plain(
    x: torch.Tensor,
    dropped: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    magnitude: torch.Tensor | None,
    norm: torch.Tensor | None,
    scale: float,
    base: nn.Module,
) -> torch.Tensor:
    """LowRankLinear by autograd's operations, where everything the adapter adds reads `dropped`, x after dropout.

    As in PEFT: with DoRA that is (c − 1)·x·Wᵀ as well as the low-rank part, while x·Wᵀ + b reads x. Products with W use FrozenLinear,
    since autograd would save every quantised weight in dense form.
    """
    dtype = x.dtype
    y: torch.Tensor = FrozenLinear.apply(x, base, True)  # type: ignore[no-untyped-call]
    update = low_rank_update(dropped, a, b, scale)
    if magnitude is not None and norm is not None:
        factor = magnitude / norm  # fp32, see LowRankLinear
        again: torch.Tensor = FrozenLinear.apply(dropped, base, False)  # type: ignore[no-untyped-call]
        update = (factor - 1) * again + factor * update
    return (y + update).to(dtype)


def row_norms(
    weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float, squares: torch.Tensor
) -> torch.Tensor:
    """‖W + s·B·A‖ of each row (out,), fp32, without forming the sum: ‖W‖² + 2s·⟨B, W·Aᵀ⟩ + s²·⟨B·(A·Aᵀ), B⟩.

    `squares` (out,) is ‖W‖², constant in training; the products cost rank·in·out operations and no full matrix.
    """
    cross = ((weight.to(a.dtype) @ a.t()) * b).sum(1)
    own = ((b @ (a @ a.t())) * b).sum(1)
    return (squares + 2.0 * scale * cross + scale * scale * own).clamp_min_(SMALLEST_NORM**2).sqrt_()


class TokenLogProbs(Function):
    """log p(target) at each hidden state, (n,) fp32, computed in chunks of logits that are not saved.

    logits = cap·tanh(s·(h·Wᵀ + i·Bᵀ + b)/cap), where i·Bᵀ is an adapter's part; cap and part are optional. With a frozen head,
    forward also computes the gradients of the hidden states, since log p of one token depends on one hidden state only:
    (W[target] − Σ p·W)·…, one row each. With a trained or adapted head, backward recomputes the logits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        scale: float,
        cap: float | None,
        train: bool,
        inner: torch.Tensor | None = None,
        b: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """hidden (n, d), weight (vocabulary, d), targets (n,) int64; inner (n, rank), b (vocabulary, rank)."""
        result = torch.empty(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        head_trained = train and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2] or inner is not None)
        rows = torch.empty_like(hidden) if train and not head_trained else None
        for part in _chunks(hidden.shape[0], weight.shape[0]):
            logits, slope = _logits(hidden[part], weight, bias, scale, cap, None if inner is None else inner[part], b)
            sums = torch.logsumexp(logits, 1, keepdim=True)
            result[part] = (logits.gather(1, targets[part, None]) - sums)[:, 0]
            if rows is not None:
                _towards(logits, sums, targets[part], slope, scale)
                torch.mm(logits.to(hidden.dtype), weight, out=rows[part])
        ctx.scale, ctx.cap, ctx.head_trained = scale, cap, head_trained
        if head_trained:
            ctx.save_for_backward(hidden, weight, bias, targets, inner, b)
        elif rows is not None:
            ctx.save_for_backward(rows)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        """Gradients of the hidden states, and of the head where it is trained."""
        grad = grads[0]
        if not ctx.head_trained:
            (rows,) = ctx.saved_tensors
            return rows * grad[:, None].to(rows.dtype), None, None, None, None, None, None
        hidden, weight, bias, targets, inner, b = ctx.saved_tensors
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        d_inner, d_b = (None, None) if inner is None else (torch.empty_like(inner), torch.zeros_like(b))
        for part in _chunks(hidden.shape[0], weight.shape[0]):
            own = None if inner is None else inner[part]
            logits, slope = _logits(hidden[part], weight, bias, ctx.scale, ctx.cap, own, b)
            _towards(logits, torch.logsumexp(logits, 1, keepdim=True), targets[part], slope, ctx.scale)
            logits *= grad[part, None]
            if d_bias is not None:
                d_bias += logits.sum(0).to(d_bias.dtype)
            small = logits.to(hidden.dtype)
            torch.mm(small, weight, out=d_hidden[part])
            if d_weight is not None:
                d_weight.addmm_(small.t(), hidden[part])
            if d_inner is not None and d_b is not None:
                torch.mm(logits, b, out=d_inner[part])
                d_b.addmm_(logits.t(), inner[part])
        return d_hidden, d_weight, d_bias, None, None, None, None, d_inner, d_b


def _chunks(rows: int, vocabulary: int) -> list[slice]:
    size = max(1, CHUNK_NUMBERS // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _logits(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    cap: float | None,
    inner: torch.Tensor | None,
    b: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """fp32 logits (n, vocabulary), and the derivative of the cap if there is one."""
    logits = functional.linear(hidden, weight, bias).float()
    if inner is not None and b is not None:
        logits.addmm_(inner, b.t())
    if scale != 1.0:
        logits *= scale
    if cap is None:
        return logits, None
    bent = torch.tanh(logits / cap)
    return bent * cap, 1.0 - bent * bent


def _towards(
    logits: torch.Tensor, sums: torch.Tensor, targets: torch.Tensor, slope: torch.Tensor | None, scale: float
) -> None:
    """Turn logits in place into d log p(target) / d (h·Wᵀ + b) = (onehot − p)·slope·s."""
    logits.sub_(sums).exp_().neg_()
    logits.scatter_add_(1, targets[:, None], torch.ones_like(sums))
    if slope is not None:
        logits *= slope
    if scale != 1.0:
        logits *= scale
