"""Linear layers whose weights are stored in 4 or 8 bits and dequantised when used.

The stored numbers are bitsandbytes' (NF4 with double quantisation, int8 with one scale per row), but the layers are not: on a CPU
bitsandbytes repacks a 4-bit weight when it is first used outside training, after which it has no gradients, and its int8 product also
rounds the activations. Here training and inference use the same weight.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from finetune_local_backends.torch.kernels import FrozenLinear


class QuantisedLinear(nn.Module):
    """y = x·Wᵀ + b with a frozen W; subclasses define how W is stored."""

    def __init__(self, out_features: int, in_features: int, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """W (out, in) in `dtype`, dequantised at each call."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) to (..., out)."""
        if torch.is_grad_enabled() and x.requires_grad:
            result: torch.Tensor = FrozenLinear.apply(x, self, True)  # type: ignore[no-untyped-call]
            return result
        return functional.linear(x, self.dense(x.dtype), _cast(self.bias, x.dtype))


class Nf4Linear(QuantisedLinear):
    """4 bits: QLoRA's NormalFloat with doubly quantised scales (Dettmers et al. 2023, arXiv:2305.14314, section 3)."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.out_features, layer.in_features, layer.bias)
        self.state = layer.weight.quant_state
        # Blocks span row boundaries. On CPUs with AVX-512 bitsandbytes (0.50) starts a block with each row and so uses wrong
        # scales if a row is not a whole number of blocks. One long row avoids this.
        self.one_row = copy.copy(self.state)
        if self.in_features % self.state.blocksize:
            self.one_row.shape = torch.Size((1, self.out_features * self.in_features))
        self.register_buffer("weight", layer.weight.data, persistent=False)
        self.weight: torch.Tensor

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """See QuantisedLinear."""
        from bitsandbytes.functional import dequantize_4bit

        state = self.state if self.weight.is_cuda else self.one_row
        weight: torch.Tensor = dequantize_4bit(self.weight, state)
        return weight.reshape(self.out_features, self.in_features).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Uses bitsandbytes' fused product for inference on a GPU; otherwise see QuantisedLinear."""
        if x.is_cuda and not torch.is_grad_enabled():
            from bitsandbytes import matmul_4bit

            result: torch.Tensor = matmul_4bit(x, self.weight, self.state, bias=_cast(self.bias, x.dtype))
            return result
        return super().forward(x)


class Int8Linear(QuantisedLinear):
    """8 bits with one scale per output row (Dettmers et al. 2022, arXiv:2208.07339, section 2.1); activations are not quantised."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.out_features, layer.in_features, layer.bias)
        codes, scales = layer.weight.CB, layer.weight.SCB
        self.register_buffer("weight", layer.weight.data if codes is None else codes, persistent=False)
        self.register_buffer("scales", (scales.float() / 127.0)[:, None], persistent=False)
        self.weight: torch.Tensor
        self.scales: torch.Tensor

    def dense(self, dtype: torch.dtype) -> torch.Tensor:
        """See QuantisedLinear."""
        return (self.weight * self.scales).to(dtype)


def replace_layers(model: nn.Module) -> None:
    """Replace bitsandbytes' layers by these, sharing the stored weights."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear4bit):
                setattr(parent, name, Nf4Linear(child))
            elif isinstance(child, Linear8bitLt):
                setattr(parent, name, Int8Linear(child))


def _cast(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if bias is None else bias.to(dtype)
