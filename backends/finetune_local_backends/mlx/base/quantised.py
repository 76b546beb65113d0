"""Frozen linear layers stored in 4 or 8 bits and dequantised when used; the dense weight is not kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetune_local.spec.numerics import nf4
from finetune_local_backends.mlx import kernels


class CpuQuantizedLinear(nn.QuantizedLinear):
    """MLX's affine groups, dequantised for products of many rows.

    MLX's quantised product on a CPU runs at a hundredth of BLAS's speed; unpacking costs as much as a few rows.
    """

    def __call__(self, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        if x.size // x.shape[-1] < 4:
            return cast(mx.array, super().__call__(x))  # type: ignore[no-untyped-call]

        def unpacked() -> mx.array:
            kind: Any = {"group_size": self.group_size, "bits": self.bits}
            return mx.dequantize(self.weight, self.scales, self.biases, **kind).astype(x.dtype)

        y = _product(x, unpacked)
        return y + self.bias if "bias" in self else y


class Nf4Linear(nn.Module):
    """4 bits: QLoRA's NormalFloat with doubly quantised scales; the same numbers as bitsandbytes'.

    `weight` (blocks, 32) uint8 has the codes of each block of 64 weights, the last block padded with zeros; `scales`, `ranges` and
    `offset` are those of spec/numerics/nf4.py.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Quantise the layer's weight from its type; its bias is kept."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.out_features, self.in_features = (int(n) for n in layer.weight.shape)
        packed = nf4.quantise(np.array(layer.weight.astype(mx.float32)))
        codes = np.zeros((len(packed.scales), nf4.BLOCK // 2), np.uint8)
        codes.reshape(-1)[: packed.codes.size] = packed.codes
        self.weight = mx.array(codes)
        self.scales, self.ranges = mx.array(packed.scales), mx.array(packed.ranges)
        self.offset = mx.array(float(packed.offset), mx.float32)
        if "bias" in layer:
            self.bias = layer.bias

    def dense(self, dtype: mx.Dtype) -> mx.array:
        """The weight (out, in), computed in fp32 and rounded to `dtype`."""
        scales = kernels.dequantise_8bit(self.scales, self.ranges) + self.offset
        blocks = _pairs()[self.weight].reshape(-1, nf4.BLOCK) * scales[:, None]
        size = self.out_features * self.in_features
        return blocks.reshape(-1)[:size].reshape(self.out_features, self.in_features).astype(dtype)

    def __call__(self, x: mx.array) -> mx.array:
        """x (..., in) to (..., out)."""
        y = _product(x, lambda: self.dense(x.dtype))
        return y + self.bias if "bias" in self else y


@cache
def _pairs() -> mx.array:
    """The two values of each byte of codes, (256, 2)."""
    return mx.array(nf4.pair_table())


def _product(x: mx.array, dense: Callable[[], mx.array]) -> mx.array:
    """x·Wᵀ for a frozen W (out, in), which is dequantised again in the backward pass instead of saved."""

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return x @ dense().T

    @product.vjp
    def product_vjp(_: Any, cotangent: mx.array, __: Any) -> mx.array:
        return cotangent @ dense()

    return cast(mx.array, product(x))
