from __future__ import annotations

import pytest

from finetune_local.training.steps import learning_rate


def rates(schedule: str, steps: int = 10, warmup: float = 0.2) -> list[float]:
    return [learning_rate(s, steps, 1.0, warmup, schedule) for s in range(1, steps + 1)]


def test_warm_up_rises_to_the_peak_and_no_further() -> None:
    for schedule in ("constant", "linear", "cosine"):
        values = rates(schedule)
        assert values[:3] == [0.5, 1.0, 1.0]
        assert max(values) == 1.0


def test_the_falls() -> None:
    assert rates("constant")[2:] == [1.0] * 8
    assert rates("linear")[2:] == pytest.approx([1 - i / 8 for i in range(8)])
    cosine = rates("cosine")[2:]
    assert cosine[4] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)
    assert 0 < cosine[-1] < 0.05


def test_odd_ends() -> None:
    assert learning_rate(1, 1, 1.0, 0.0, "cosine") == 1.0
    assert learning_rate(1, 1, 1.0, 1.0, "cosine") == 1.0
    assert learning_rate(1, 3, 1.0, 0.03, "linear") == 1.0
