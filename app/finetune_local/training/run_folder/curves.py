"""Loss curves of several runs to be laid over each other: by step, by tokens or by time, as smooth as is wanted."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from finetune_local.training.run_folder.watch import Curve, Watch

Axis = Literal["step", "tokens", "seconds"]
AXES: tuple[Axis, ...] = ("step", "tokens", "seconds")

Smoothing = Literal["none", "light", "strong"]
SMOOTHINGS: Mapping[Smoothing, float | None] = {"none": None, "light": 40.0, "strong": 12.0}
"""How many times a curve forgets within its run; see Curve.smoothed()."""

Points = list[tuple[float, float]]


def training_loss(run: Watch, axis: Axis = "step", smoothing: Smoothing = "none") -> Points:
    """(place, loss) over a run; places are steps, trained tokens or seconds of training since its beginning."""
    forgets = SMOOTHINGS[smoothing]
    values = [span.mean for span in run.loss.spans]
    if forgets is not None:
        values = [value for _, value in run.loss.smoothed(run.steps, forgets)]
    return list(zip(_places(run, axis), values, strict=False))  # a step may be added meanwhile


def validation_loss(run: Watch, axis: Axis = "step") -> Points:
    """(place, loss) of every validation; the one before the first step is at 0."""
    return _placed(run, axis, [(step, loss) for step, loss, _ in run.validation])


def metric(run: Watch, key: str, axis: Axis = "step") -> Points:
    """(place, value) of one of the objective's metrics, as of validation_loss()."""
    return _placed(run, axis, run.metric(key))


def _placed(run: Watch, axis: Axis, values: Iterable[tuple[int, float]]) -> Points:
    steps, places = [span.step for span in run.loss.spans], _places(run, axis)
    found: Points = []
    for step, value in values:
        at = bisect.bisect_left(steps, step)
        place = 0.0 if step == 0 or not places else places[min(at, len(places) - 1)]
        found.append((float(step) if axis == "step" else place, value))
    return found


def _places(run: Watch, axis: Axis) -> Sequence[float]:
    """Where each span of the loss ends."""
    if axis == "step":
        return [float(span.step) for span in run.loss.spans]
    return list(accumulate(_sums(run.tokens if axis == "tokens" else run.seconds)))


def _sums(curve: Curve) -> list[float]:
    return [span.mean * span.count for span in curve.spans]
