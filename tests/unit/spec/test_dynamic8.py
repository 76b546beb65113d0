"""The dynamic 8-bit type in numpy: its levels, and what a value may be off by. That its indices are bitsandbytes' own is tested
in tests/conformance/test_mlx_optimizer.py and test_nf4.py."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_local.spec.numerics import dynamic8


def test_the_signed_levels_are_those_of_the_paper() -> None:
    levels = dynamic8.levels()
    assert len(levels) == 256 and (np.diff(levels) > 0).all()
    assert levels[127] == 0 and levels[255] == 1
    np.testing.assert_array_equal(-levels[126::-1], levels[128:255])  # 1 is the odd one out
    assert levels[128] == pytest.approx(0.55e-6) and levels[254] == pytest.approx(0.9929688)


def test_the_unsigned_levels_give_the_sign_s_bit_to_the_fraction() -> None:
    levels = dynamic8.levels(signed=False)
    assert len(levels) == 256 and (np.diff(levels) > 0).all()
    assert levels[0] == 0 and levels[255] == 1
    np.testing.assert_allclose(levels[1:3], [0.325e-6, 0.775e-6])
    assert np.searchsorted(levels, 0.1) == 127  # half of all levels lie in the last power of ten


@pytest.mark.parametrize("signed", [True, False])
def test_values_come_back_within_half_a_level_of_their_block_s_range(signed: bool) -> None:
    values = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)
    values[256:512] *= 1e-6  # a block of its own, with a range of its own
    values[512:768] = 0
    if not signed:
        values = np.abs(values)
    indices, ranges = dynamic8.quantise(values, signed)
    assert (indices.dtype, indices.shape, ranges.shape) == (np.uint8, (1000,), (4,))
    found = dynamic8.dequantise(indices, ranges, signed)
    off = np.abs(found - values) / np.repeat(np.maximum(ranges, 1e-30), 256)[:1000]
    assert off.max() < (0.0075 if signed else 0.004)
    np.testing.assert_array_equal(found[512:768], 0)
