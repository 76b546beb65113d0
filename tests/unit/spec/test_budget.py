"""AdaLoRA's schedule and choice against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_local.spec.numerics.budget import Budget, Schedule
from finetune_local.system.errors import AdapterError

TRIPLETS = {"m": ("m.A", "m.B", "m.E"), "n": ("n.A", "n.B", "n.E")}


def test_the_budget_falls_by_a_cubic_between_two_plateaus() -> None:
    schedule = Schedule(first=20, last=4, steps=12, tinit=2, tfinal=2, every=2)
    told = {step: schedule.at(step) for step in range(1, 14)}
    # 4 + 16·(1 − (step − 2)/8)³, rounded down, at every second step from 3 on
    assert told == {
        **dict.fromkeys(range(1, 14), None),
        4: 10,  # 4 + 16·0.421875
        6: 6,  # 4 + 16·0.125
        8: 4,  # 4 + 16·0.015625
        10: 4,
    }


def tensors(e: list[list[float]]) -> dict[str, np.ndarray]:
    """Two matrices of rank 2 whose A and B do not tell the triplets apart."""
    result: dict[str, np.ndarray] = {}
    for name, values in zip("mn", e, strict=True):
        result |= {f"{name}.A": np.full((2, 3), 0.01, np.float32), f"{name}.B": np.full((5, 2), 0.01, np.float32)}
        result[f"{name}.E"] = np.array(values, np.float32)[:, None]
    return result


def ones(like: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ones_like(value) for name, value in like.items()}


def make_budget(steps: int = 4, last: int = 2) -> Budget:
    return Budget(TRIPLETS, Schedule(4, last, steps, 0, 1, 1), 0.5, 0.5)


def test_the_least_important_triplets_go_and_stay_gone_at_the_end() -> None:
    now = tensors([[3.0, -0.2], [0.1, 2.0]])
    budget = make_budget()
    # Budget after step 1: 2 + 2·(2/3)³ = 2.59, so 2 of the 4 stay: |E·g| is 3, 0.2, 0.1 and 2.
    changed = budget.update(now, ones(now))
    assert {name: value[:, 0].tolist() for name, value in changed.items()} == {"m.E": [3.0, 0.0], "n.E": [0.0, 2.0]}
    # What was cut may come back while ranks fall …
    now = tensors([[0.1, 9.0], [0.1, 9.0]])
    changed = budget.update(now, ones(now))
    assert {name: value[:, 0].tolist() for name, value in changed.items()} == {"m.E": [0.0, 9.0], "n.E": [0.0, 9.0]}
    # … the last choice is of step 3 = 4 − 1, by what was measured before it …
    now = tensors([[7.0, 1.0], [7.0, 1.0]])
    changed = budget.update(now, ones(now))
    assert {name: value[:, 0].tolist() for name, value in changed.items()} == {"m.E": [0.0, 1.0], "n.E": [0.0, 1.0]}
    # … and from then on holds whatever comes, with nothing else remembered.
    now = tensors([[50.0, 1.0], [50.0, 1.0]])
    changed = budget.update(now, ones(now))
    assert {name: value[:, 0].tolist() for name, value in changed.items()} == {"m.E": [0.0, 1.0], "n.E": [0.0, 1.0]}
    assert sorted(budget.state()) == ["kept:m.E", "kept:n.E", "step"]


def test_importance_is_sensitivity_times_uncertainty_smoothed() -> None:
    """beta 0.5, |w·g| = 4 then 2: mean 2 then 2; uncertainty 0.5·|4 − 2| = 1, then 0.5·1 + 0.5·|2 − 2| = 0.5."""
    budget = Budget({"m": TRIPLETS["m"]}, Schedule(2, 2, 9, 0, 1, 1), 0.5, 0.5)
    for size in (4.0, 2.0):
        now = {name: value for name, value in tensors([[size, size], [0, 0]]).items() if name.startswith("m")}
        assert budget.update(now, ones(now)) == {}  # the budget is all there is
    state = budget.state()
    assert state["importance:m.E"].tolist() == [[2.0], [2.0]]
    assert state["uncertainty:m.E"].tolist() == [[0.5], [0.5]]


def test_rows_of_a_and_columns_of_b_count_by_their_mean() -> None:
    now = tensors([[1.0, 1.0], [1.0, 1.0]])
    now["m.A"][0] = 3.0
    now["n.B"][:, 1] = 2.0
    changed = make_budget().update(now, ones(now))
    assert {name: value[:, 0].tolist() for name, value in changed.items()} == {"m.E": [1.0, 0.0], "n.E": [0.0, 1.0]}


def test_a_run_too_short_to_measure_is_pruned_by_its_last_step() -> None:
    now = tensors([[3.0, -0.2], [0.1, 2.0]])
    changed = Budget(TRIPLETS, Schedule(4, 2, 2, 0, 1, 1), 0.5, 0.5).update(now, ones(now))
    assert {name: value[:, 0].tolist() for name, value in changed.items()} == {"m.E": [3.0, 0.0], "n.E": [0.0, 2.0]}


def test_a_state_of_another_adapter_is_refused() -> None:
    now = tensors([[3.0, -0.2], [0.1, 2.0]])
    budget = make_budget()
    for _ in range(3):
        budget.update(now, ones(now))
    other = Budget({"m": ("x.A", "x.B", "x.E")}, Schedule(2, 1, 4, 0, 1, 1), 0.5, 0.5)
    with pytest.raises(AdapterError, match="belongs to another adapter"):
        other.restore(budget.state())
    with pytest.raises(AdapterError, match="no record of AdaLoRA's budget"):
        other.restore({})
