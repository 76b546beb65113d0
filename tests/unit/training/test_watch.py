from __future__ import annotations

import json
import time

import pytest

from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training.events import Finished, Note, Sample, Started, Step, Validation
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.runs import Run
from finetune_local.training.run_folder.watch import SPANS, Curve, Watch


@pytest.fixture
def run(home: Home) -> Run:
    return runs.create(home, parse_spec({"name": "watched", "data": {"files": ["x.jsonl"]}}, "test"))


def started(steps: int) -> Started:
    return Started(step=0, steps=steps, backend="torch", device="cpu", precision="fp32", trainable_parameters=1,
                   total_parameters=2, rows=3, validation_rows=1)  # fmt: skip


def step(number: int, steps: int, loss: float) -> Step:
    return Step(step=number, steps=steps, loss=loss, learning_rate=1e-4, gradient_norm=1.0, tokens=10, supervised_tokens=5,
                tokens_per_second=100.0, seconds_left=float(steps - number), peak_memory_bytes=1000)  # fmt: skip


def test_it_reads_on_and_each_line_once(run: Run) -> None:
    watch = Watch(run)
    assert watch.refresh(0).step == 0
    run.append(started(10))
    run.append(Note(text="a choice"))
    for number in range(1, 4):
        run.append(step(number, 10, 3.0 - number))
    watch.refresh(0)
    run.append(step(4, 10, 0.5))
    watch.refresh(0)
    assert [span.step for span in watch.loss.spans] == [1, 2, 3, 4]
    assert (watch.step, watch.steps, watch.seconds_left, watch.notes) == (4, 10, 6.0, ["a choice"])


def test_a_resumed_run_goes_over_what_was_lost(run: Run) -> None:
    for number in range(1, 6):
        run.append(step(number, 10, 1.0))
    run.append(Validation(step=5, loss=2.0, best=True))
    run.append(Sample(step=5, prompt="q", answer="old", reference="r"))
    run.append(step(3, 10, 9.0))  # killed after 5, the checkpoint was at 2
    run.append(Validation(step=3, loss=1.0, best=True))
    run.append(Sample(step=3, prompt="q", answer="new", reference="r"))
    watch = Watch(run).refresh(0)
    assert [(span.step, span.mean) for span in watch.loss.spans] == [(1, 1.0), (2, 1.0), (3, 9.0)]
    assert [(at, loss) for at, loss, _ in watch.validation] == [(3, 1.0)]
    assert watch.answers["q"].given == [(3, "new")]


def test_a_half_written_line_waits_and_a_cut_file_is_read_anew(run: Run) -> None:
    run.append(step(1, 5, 1.0))
    watch = Watch(run).refresh(0)
    with run.events_file.open("ab") as file:
        file.write(json.dumps(step(2, 5, 1.0).as_json()).encode()[:20])
    assert watch.refresh(0).step == 1
    run.repair()
    run.append(step(2, 5, 0.5))
    assert watch.refresh(0).step == 2
    run.events_file.write_bytes(b"")
    assert watch.refresh(0).step == 0


def test_a_hundred_thousand_steps_stay_few_points_and_keep_their_spikes() -> None:
    curve = Curve()
    for number in range(1, 100_001):
        curve.add(number, 50.0 if number == 77_777 else 1.0)
    assert SPANS <= len(curve.spans) <= 2 * SPANS
    assert max(span.high for span in curve.spans) == 50.0
    assert curve.spans[-1].step == 100_000
    assert sum(span.count for span in curve.spans) == 100_000
    assert [span.step for span in curve.spans] == sorted({span.step for span in curve.spans})


def test_the_smoothed_curve_has_no_bias_at_its_beginning() -> None:
    curve = Curve()
    for number in range(1, 200):
        curve.add(number, 2.0)
    assert all(value == pytest.approx(2.0) for _, value in curve.smoothed(200))


def test_the_end_has_the_summary(run: Run) -> None:
    run.append(started(1))
    run.append(Finished(reason="all steps done", summary={"seconds": 5.0}))
    watch = Watch(run).refresh(0)
    assert watch.summary["seconds"] == 5.0 and watch.seconds_left is None


def test_windows_that_ask_at_once_read_once(run: Run) -> None:
    watch = Watch(run)
    run.append(step(1, 5, 1.0))
    watch.refresh()
    run.append(step(2, 5, 1.0))
    assert watch.refresh(60).step == 1
    time.sleep(0.01)
    assert watch.refresh(0).step == 2


def test_a_long_curve_is_thinned_evenly_and_loses_nothing() -> None:
    curve = Curve()
    for step in range(1, 20_001):
        curve.add(step, float(step))
    counts = [span.count for span in curve.spans]
    assert SPANS <= len(counts) <= 2 * SPANS and sum(counts) == 20_000
    assert len(set(counts[:-1])) == 1, "every span holds as many steps as the next"
    assert (curve.spans[0].low, curve.spans[-1].high, curve.spans[-1].step) == (1.0, 20_000.0, 20_000)
    assert sum(span.mean * span.count for span in curve.spans) == pytest.approx(20_000 * 20_001 / 2)
