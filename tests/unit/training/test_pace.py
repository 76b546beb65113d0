from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_local.runtime.status import Status
from finetune_local.training.run_folder.facts import RunFacts
from finetune_local.training.run_folder.forecast import BF16_GAIN, REACHED, Work, pace, work_of_run

SMALL = Work("small", 100_000_000, "torch", "fp32", whole=False)


def work(**changed: Any) -> Work:
    return Work(**{**vars(SMALL), **changed})


def test_a_run_of_the_same_kind_is_what_counts() -> None:
    found = pace(SMALL, [(work(model="other"), 999.0, "no"), (SMALL, 200.0, "yes")], 1e12, True)
    assert (found.tokens_per_second, found.basis, found.run) == (200.0, "same", "yes")


def test_a_run_of_another_size_or_method_is_scaled_by_its_arithmetic() -> None:
    assert (
        pace(SMALL, [(work(model="big", parameters=400_000_000), 50.0, "big")], None, False).tokens_per_second == 200.0
    )
    whole = pace(work(whole=True), [(SMALL, 300.0, "lora")], None, False)
    assert (whole.tokens_per_second, whole.basis) == (200.0, "similar")


@pytest.mark.parametrize("other", [work(backend="mlx"), work(precision="bf16")])
def test_another_backend_or_precision_says_nothing(other: Work) -> None:
    assert pace(SMALL, [(other, 500.0, "x")], None, False).basis == "unknown"


def test_without_any_run_it_is_arithmetic_and_called_rough() -> None:
    found = pace(SMALL, [], 1e11, True)
    assert found.basis == "rough" and found.tokens_per_second == pytest.approx(REACHED * 1e11 / 4e8)
    fast = pace(work(precision="bf16"), [], 1e11, True)
    assert fast.tokens_per_second == pytest.approx(BF16_GAIN * REACHED * 1e11 / 4e8)


def test_a_run_too_short_or_of_a_model_that_is_gone_tells_nothing() -> None:
    facts = RunFacts(
        run="r", status=Status.FINISHED, folder="", changed="", changed_time=0.0, model="small", seconds=10.0, trained_tokens=1000,
        steps=20, backend="torch", precision="fp32", trainable_parameters=1000,
    )  # fmt: skip
    found = work_of_run(facts, {"small": 100_000_000})
    assert found is not None and found == (SMALL, 100.0, "r")
    for changed in ({"steps": 2}, {"seconds": None}, {"trained_tokens": 0}, {"model": "gone"}):
        assert work_of_run(replace(facts, **changed), {"small": 100_000_000}) is None
