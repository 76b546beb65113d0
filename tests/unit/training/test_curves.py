"""Curves of several runs by step, tokens and time; and in what their settings differ."""

from __future__ import annotations

import pytest

from finetune_local.spec.run import parse_spec
from finetune_local.system.errors import SpecError
from finetune_local.system.paths import Home
from finetune_local.training.events import Started, Step, Validation
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder import watch as curves
from finetune_local.training.run_folder.settings import differences
from finetune_local.training.run_folder.watch import SPANS, Watch


def run_of(home: Home, name: str, **tables: object) -> runs.Run:
    return runs.create(home, parse_spec({"name": name, "data": {"files": ["x"]}, **tables}, "test"))


def watched(home: Home, steps: int, tokens: int = 100, speed: float = 50.0) -> Watch:
    run = run_of(home, "curve")
    run.append(
        Started(
            step=0, steps=steps, backend="torch", device="cpu", precision="fp32", trainable_parameters=1,
            total_parameters=1, rows=1, validation_rows=1,
        )
    )  # fmt: skip
    run.append(Validation(step=0, loss=5.0, best=True))
    lines = [
        Step(
            step=n, steps=steps, loss=4.0 - n % 2, learning_rate=0.1, gradient_norm=1.0, tokens=tokens,
            supervised_tokens=1, tokens_per_second=speed, seconds_left=1.0, peak_memory_bytes=1,
        )
        for n in range(1, steps + 1)
    ]  # fmt: skip
    for line in lines:
        run.append(line)
    run.append(Validation(step=steps, loss=2.0, best=True))
    return Watch(run).refresh()


def test_the_axes_are_steps_tokens_and_seconds(home: Home) -> None:
    watch = watched(home, 4)
    assert curves.training_loss(watch) == [(1, 3), (2, 4), (3, 3), (4, 4)]
    assert [x for x, _ in curves.training_loss(watch, "tokens")] == [100, 200, 300, 400]
    assert [x for x, _ in curves.training_loss(watch, "seconds")] == pytest.approx([2, 4, 6, 8])
    assert curves.validation_loss(watch) == [(0, 5), (4, 2)]
    assert curves.validation_loss(watch, "tokens") == [(0, 5), (400, 2)]


def test_smoothing_forgets_more_slowly_the_stronger_it_is(home: Home) -> None:
    watch = watched(home, 200)

    def swing(smoothing: curves.Smoothing) -> float:
        tail = [y for _, y in curves.training_loss(watch, "step", smoothing)][-20:]
        return max(tail) - min(tail)

    assert swing("none") == 1.0
    assert 0 < swing("strong") < swing("light") < 0.5


def test_long_runs_are_thinned_without_losing_their_length(home: Home) -> None:
    watch = watched(home, 2 * SPANS + 300)
    points = curves.training_loss(watch, "tokens")
    assert len(points) < 2 * SPANS and points[-1][0] == 100 * (2 * SPANS + 300)


def test_only_what_differs_is_told(home: Home) -> None:
    found = [
        run_of(home, "a", training={"seed": 1, "learning_rate": 1e-3}),
        run_of(home, "b", training={"seed": 1}, method={"key": "lora", "rank": 4}),
        run_of(home, "c", training={"seed": 1}, method="full"),
    ]
    rows = {row.path: row.values for row in differences(found)}
    assert rows["training.learning_rate"] == (1e-3, None, None)
    assert rows["method.key"] == ("lora", "lora", "full")
    assert rows["method.rank"] == (16, 4, None)
    assert {"name", "training.seed"} & set(rows) == set()
    (found[1].folder / "run.json").write_text("[]", "utf-8")
    with pytest.raises(SpecError, match="cannot be compared"):
        differences(found)
