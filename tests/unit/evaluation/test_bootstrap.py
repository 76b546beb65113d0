"""Intervals against known statistics."""

import numpy as np
import pytest

from finetune_local.evaluation.compare import Interval, difference, interval


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    found = interval(values)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == (
        pytest.approx(values.mean() - half, abs=0.1 * half),
        pytest.approx(values.mean() + half, abs=0.1 * half),
    )


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = interval((rng.random(80) < 0.3).astype(float), seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_weights_make_it_a_mean_per_token() -> None:
    values, weights = np.array([1.0, 3.0]), np.array([30.0, 10.0])
    assert interval(values, weights).mean == pytest.approx(1.5)
    assert (interval(values, weights).low, interval(values, weights).high) == (1.0, 3.0)


def test_paired_differences_are_sharper_than_separate_intervals() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(0, 5, 100)  # rows differ a lot from each other, the two models little
    first, second = rows + rng.normal(0, 0.2, 100), rows + 0.3 + rng.normal(0, 0.2, 100)
    gain = difference(first, second)
    assert gain.low > 0 and not gain.includes_zero
    assert interval(first).high > interval(second).low, "apart they overlap"


def test_the_seed_fixes_the_result_and_many_rows_fit_into_memory() -> None:
    values = np.random.default_rng(0).random(3000)
    assert interval(values, seed=3) == interval(values, seed=3)
    few = np.random.default_rng(0).random(10)
    assert interval(few, seed=3) != interval(few, seed=4)


def test_equal_rows_have_an_interval_without_width() -> None:
    assert interval(np.zeros(5)) == Interval(0.0, 0.0, 0.0)
    assert interval(np.zeros(5)).as_json() == {"mean": 0.0, "low": 0.0, "high": 0.0}
