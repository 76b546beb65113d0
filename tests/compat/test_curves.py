"""Losses, gradient norms and adapters of every method are those that were recorded before the house was rebuilt."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from compat import house, record_curves
from conftest import USABLE

KNOWN = json.loads(record_curves.RECORDED.read_text("utf-8"))


@pytest.mark.parametrize("backend", USABLE)
def test_curves_are_the_recorded_ones(backend: str) -> None:
    """In a process of its own, where nothing has set the framework up otherwise."""
    command = [sys.executable, record_curves.__file__, "--check", "--backend", backend]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_method_is_recorded_on_every_backend() -> None:
    """For a new one: `python tests/compat/record_curves.py`."""
    assert set(KNOWN) == {"torch", "mlx"}
    for backend, recorded in KNOWN.items():
        assert set(house.method_keys()) <= set(recorded["curves"]), backend
        assert {len(curve["losses"]) for curve in recorded["curves"].values()} == {record_curves.STEPS}


def test_a_resumed_run_is_as_one_that_was_never_stopped() -> None:
    for backend, recorded in KNOWN.items():
        for name, resumed in recorded["curves"].items():
            if name.endswith(", resumed"):
                whole = recorded["curves"][name.removesuffix(", resumed")]
                for part in ("losses", "gradient_norms", "adapter"):
                    assert resumed[part] == whole[part], (backend, name)


def test_a_difference_is_found() -> None:
    recorded = KNOWN["torch"]["curves"]["lora"]
    last = float.fromhex(recorded["losses"][-1])
    other = {**recorded, "losses": [*recorded["losses"][:-1], (last + 1e-7).hex()]}
    assert record_curves.compared(recorded, recorded, exactly=True) == []
    assert record_curves.compared(recorded, other, exactly=True) and not record_curves.compared(
        recorded, other, exactly=False
    )
    far = {**recorded, "losses": [*recorded["losses"][:-1], (last + 1e-3).hex()]}
    assert record_curves.compared(recorded, far, exactly=False)
