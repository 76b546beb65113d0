"""Both backends compute the same: logits of every family of models, initial adapters, and whole training curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conforming import ROWS, Case, make_case
from finetune_local.backend import Backend, backends
from finetune_local.spec.tuners import presets
from tiny import FAMILIES, MORE_FAMILIES, tiny_model


@pytest.fixture
def both() -> tuple[Backend, Backend]:
    """torch and MLX, where both can be used."""
    pair = backends()["torch"], backends()["mlx"]
    for backend in pair:
        if reason := backend.missing():
            pytest.skip(f"two backends are compared here, but {backend.name}: {reason}")
    return pair


@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_logits_are_equal(both: tuple[Backend, Backend], family: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / family, family, seed=3)
    for row in ROWS:
        one, other = (backend.load(folder, "fp32").logits(row) for backend in both)
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("method", list(presets()))
def test_adapters_begin_equal(both: tuple[Backend, Backend], method: str, tiny: Path) -> None:
    cases = _cases(both, method, tiny)
    one, other = (case.session.tensors("a") for case in cases)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", list(presets()))
def test_curves_are_equal(both: tuple[Backend, Backend], method: str, family: str, tmp_path: Path) -> None:
    curves = []
    for case in _cases(both, method, tiny_model(tmp_path / family, family)):
        case.session.prepare("a", case.spec.training)
        curves.append(case.train(20, slower=5.0))
    assert curves[0][-1] < curves[0][0]
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-3)


@pytest.mark.parametrize("method", list(presets()))
def test_trained_on_one_it_answers_on_the_other(both: tuple[Backend, Backend], method: str, tiny: Path) -> None:
    for here, there in (both, both[::-1]):
        (trained,) = _cases((here,), method, tiny)
        trained.session.prepare("a", trained.spec.training)
        trained.train(5)
        other = there.load(tiny, "fp32")
        other.attach("a", trained.plan, 1, trained.session.tensors("a"))
        for row in ROWS:
            np.testing.assert_allclose(other.logits(row), trained.session.logits(row), atol=1e-3)


def _cases(pair: tuple[Backend, ...], method: str, folder: Path) -> list[Case]:
    cases = [make_case(backend, method, folder, precision="fp32") for backend in pair]
    for case in cases:
        case.attach()
    return cases
