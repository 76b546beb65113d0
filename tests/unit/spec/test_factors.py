"""Low-rank factors: exact for small matrices, near enough and repeatable for big ones."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_local.spec.low_rank import init


def matrix(rows: int, columns: int) -> np.ndarray:
    """Random, with singular values that fall like those of trained weights."""
    rng = np.random.default_rng(rows)
    u, _ = np.linalg.qr(rng.standard_normal((rows, 60)))
    v, _ = np.linalg.qr(rng.standard_normal((columns, 60)))
    return ((u * np.linspace(4.0, 0.5, 60)) @ v.T).astype(np.float32)


@pytest.mark.parametrize("shape", [(70, 90), (90, 70)])
@pytest.mark.parametrize("big", [False, True])
def test_the_principal_part_is_the_best_of_its_rank(
    shape: tuple[int, int], big: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if big:
        monkeypatch.setattr(init, "EXACT_UP_TO", 8)
    weight = matrix(*shape)
    b, a = init.principal(weight, 6, "层")
    assert (b.shape, a.shape, b.dtype, a.dtype) == ((shape[0], 6), (6, shape[1]), np.float32, np.float32)
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(b @ a, (u[:, :6] * s[:6]) @ v[:6], atol=0.02 if big else 1e-5)
    best = np.sqrt((s[6:] ** 2).sum())
    assert np.linalg.norm(weight - b @ a) <= best * (1.001 if big else 1.00001)
    np.testing.assert_allclose(np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1), rtol=1e-5)
    for one, other in zip((b, a), init.principal(weight, 6, "层"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_orthonormal_is_the_beginning_of_qr(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    q, r = np.linalg.qr(weight.astype(np.float64))
    b, a = init.orthonormal(weight, 5)
    np.testing.assert_allclose(b, q[:, :5], atol=1e-5)
    np.testing.assert_allclose(a, r[:5], atol=1e-5)
