"""Every method on torch and on MLX from the same start: the same loss curve, and an adapter that crosses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conforming import ROWS, make_case
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.backend import backends
from finetune_local.spec.tuners import presets, tuner_of

TORCH, MLX = backends()["torch"], backends()["mlx"]
if lacking := [b.name for b in (TORCH, MLX) if b.missing()]:
    pytest.skip(f"parity needs both backends; missing: {', '.join(lacking)}", allow_module_level=True)

STEPS = 20
PROMISED = 1e-3


@pytest.mark.parametrize("method", list(presets()))
def test_one_curve_and_one_adapter(tiny: Path, tmp_path: Path, method: str) -> None:
    cases = [make_case(b, method, tiny, precision="fp32", optimizer="adamw", max_steps=STEPS) for b in (TORCH, MLX)]
    curves = []
    for case in cases:
        case.attach()
    for name, value in cases[0].session.tensors("a").items():
        np.testing.assert_allclose(cases[1].session.tensors("a")[name], value, atol=1e-6, err_msg=name)
    for case in cases:
        case.session.prepare("a", case.spec.training)
        curves.append(case.train(STEPS))
    assert curves[0][-1] < 0.8 * curves[0][0], "nothing was learnt, so the comparison says nothing"
    np.testing.assert_allclose(curves[1], curves[0], atol=PROMISED)
    for source, other in (cases, reversed(cases)):
        plan, tensors = tuner_of(source.plan).fold(source.plan, source.session.tensors("a"))
        folder = tmp_path / source.backend.name
        write_adapter(folder, plan, tensors, "tiny")
        session = other.reload()
        session.attach("crossed", *_read(folder))
        np.testing.assert_allclose(session.logits(ROWS[0]), source.session.logits(ROWS[0]), atol=1e-4)


def _read(folder: Path) -> tuple[object, int, dict[str, np.ndarray]]:
    plan, tensors = read_adapter(folder)
    return plan, 0, tensors
