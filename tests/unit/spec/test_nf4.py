"""NF4 in numpy: the table, the packing and what a weight may be off by. That its numbers are bitsandbytes' own is tested
in tests/conformance/test_nf4.py."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_local.spec.numerics import nf4


def test_the_table_is_that_of_the_paper() -> None:
    assert len(nf4.TABLE) == 16 and (np.diff(nf4.TABLE) > 0).all() and nf4.TABLE[7] == 0
    assert (nf4.TABLE[0], nf4.TABLE[15]) == (-1, 1)


def test_two_codes_lie_in_a_byte_the_first_in_the_high_half() -> None:
    weight = nf4.TABLE[[15, 0, 7, 8, 1]]
    packed = nf4.quantise(weight)
    assert packed.codes.tolist() == [0xF0, 0x78, 0x17]  # the last half is filled up with the code of 0
    assert nf4.dequantise(packed).tolist() == weight.tolist()


@pytest.mark.parametrize("shape", [(64, 64), (48, 40), (3, 7), (5,), (2, 3, 50), (260, 256)])
def test_each_weight_becomes_the_nearest_level_of_its_block(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).normal(0, 0.02, shape).astype(np.float32)
    packed = nf4.quantise(weight)
    count = -(-weight.size // 64)
    assert (packed.shape, packed.codes.size, packed.scales.size) == (shape, -(-weight.size // 2), count)
    assert packed.nbytes == packed.codes.size + count + 4 * -(-count // 256) + 4
    found = nf4.dequantise(packed)
    assert (found.shape, found.dtype) == (shape, np.float32)
    flat = weight.reshape(-1).astype(np.float64)
    for start in range(0, flat.size, 64):
        block = flat[start : start + 64]
        largest = np.abs(block).max()
        nearest = nf4.TABLE[np.abs(block[:, None] / largest - nf4.TABLE.astype(np.float64)).argmin(1)]
        scale = found.reshape(-1)[start : start + 64] / largest
        # The block's scale has been through 8 bits: a factor near 1, one for the whole block.
        factor = (scale @ nearest) / (nearest @ nearest)
        assert abs(factor - 1) < 0.05
        np.testing.assert_allclose(scale, factor * nearest, atol=1e-6)


def test_blocks_of_zeros_stay_zeros() -> None:
    weight = np.zeros((4, 64), np.float32)
    np.testing.assert_array_equal(nf4.dequantise(nf4.quantise(weight)), weight)
