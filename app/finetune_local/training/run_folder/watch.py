"""Watch a run: each event is read once, as it is appended, and kept in bounded memory; curves for charts.

A curve has at most 2,000 spans, each with mean, lowest and highest value, so a chart shows every spike and its cost does not grow
with the run.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

from finetune_local.runtime.status import ProcessState
from finetune_local.spec.objectives import Objective, objectives
from finetune_local.spec.run import DEFAULT_OBJECTIVE
from finetune_local.spec.walk import OBJECTIVE, keyed
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object
from finetune_local.training import events
from finetune_local.training.events import Event
from finetune_local.training.run_folder.runs import Run

SPANS = 1000
"""A curve is thinned to this number of spans when it reaches twice as many."""

SMOOTHING = 40.0
"""The window of a smoothed curve is 1/SMOOTHING of the run."""

Axis = Literal["step", "tokens", "seconds"]
AXES: tuple[Axis, ...] = ("step", "tokens", "seconds")
Smoothing = Literal["none", "light", "strong"]
SMOOTHINGS: Mapping[Smoothing, float | None] = {"none": None, "light": 40.0, "strong": 12.0}
"""The `smoothing` of Curve.smoothed() for each choice."""


@dataclass
class Span:
    """Consecutive steps: the last step's number, and mean, lowest and highest value."""

    step: int
    mean: float
    low: float
    high: float
    count: int = 1


class Curve:
    """Values by step, thinned to spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        # Steps per span: doubled when there are too many spans, so that the cost per step stays constant.
        self._width = 1

    def add(self, step: int, value: float) -> None:
        """Append a value. A step that is not after the last one (the run was resumed) replaces it and all later ones."""
        if self.spans and step <= self.spans[-1].step:
            while self.spans and self.spans[-1].step >= step:
                self.spans.pop()
        if self.spans and self.spans[-1].count < self._width:
            last = self.spans[-1]
            mean = last.mean + (value - last.mean) / (last.count + 1)
            self.spans[-1] = Span(step, mean, min(last.low, value), max(last.high, value), last.count + 1)
            return
        self.spans.append(Span(step, value, value, value))
        if len(self.spans) > 2 * SPANS:
            self.spans = [_joined(pair) for pair in _pairs(self.spans)]
            self._width *= 2

    def last(self) -> float | None:
        """The newest value."""
        return self.spans[-1].mean if self.spans else None

    def smoothed(self, steps: int, smoothing: float = SMOOTHING) -> list[tuple[int, float]]:
        """(step, value) of the bias-corrected exponential mean over a window of `steps / smoothing` steps."""
        result, weighted, weight = list[tuple[int, float]](), 0.0, 0.0
        for span in self.spans:
            keep = (1 - 1 / max(2.0, steps / smoothing)) ** span.count
            weighted = keep * weighted + (1 - keep) * span.mean
            weight = keep * weight + (1 - keep)
            result.append((span.step, weighted / weight))
        return result


@dataclass
class Answers:
    """The sampled answers to one validation prompt: (step, answer), newest last."""

    prompt: str
    reference: str
    given: list[tuple[int, str]] = field(default_factory=list)


class Watch:
    """The state of one run as read from its events. refresh() reads new ones."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._tail = run.tail()
        self._lock = threading.Lock()
        self._looked = 0.0
        self._forget()

    def _forget(self) -> None:
        self.loss, self.rate, self.speed, self.gradient = Curve(), Curve(), Curve(), Curve()
        self.tokens, self.seconds = Curve(), Curve()
        """Per step, not cumulative; thinned with the loss, span by span."""
        self.validation: list[tuple[int, float, bool]] = []
        self.metrics: list[tuple[int, Mapping[str, float]]] = []
        """(step, the objective's metrics) of every validation."""
        self.answers: dict[str, Answers] = {}
        self.notes: list[str] = []
        self.phase: tuple[str, float | None] = ("", None)
        self.started: events.Started | None = None
        self.newest: events.Step | None = None
        self.end: Event | None = None
        self.saved: int | None = None
        self.step = self.steps = 0
        self.seconds_left: float | None = None
        self.last_time: float | None = None

    def refresh(self, at_most_every: float = 0.4) -> Watch:
        """Read the new events. Any thread may call it."""
        with self._lock:
            if time.monotonic() - self._looked >= at_most_every:
                self._looked = time.monotonic()
                if (
                    self._tail.position > self.run.events_end()
                ):  # truncated after a kill, or another run of the same name
                    self._tail = self.run.tail()
                    self._forget()
                for event in self._tail.read():
                    self._take(event)
        return self

    def state(self) -> ProcessState:
        """The run's status, and whether its worker was killed."""
        return self.run.process_state()

    def _take(self, event: Event) -> None:
        self.last_time = event.time
        if isinstance(event, events.Step):
            self._take_step(event)
        elif isinstance(event, events.Started):
            self.started, self.step, self.steps, self.end = event, event.step, event.steps, None
            self.phase = ("", None)
        elif isinstance(event, events.Phase):
            self.phase, self.end = (event.name, event.done), None
        elif isinstance(event, events.Note):
            self.notes.append(event.text)
        elif isinstance(event, events.Validation):
            self.validation = [v for v in self.validation if v[0] < event.step] + [(event.step, event.loss, event.best)]
            values = {name: float(value) for name, value in event.metrics.items() if type(value) in (int, float)}
            self.metrics = [m for m in self.metrics if m[0] < event.step] + [(event.step, values)]
        elif isinstance(event, events.Sample):
            answers = self.answers.setdefault(event.prompt, Answers(event.prompt, event.reference))
            answers.given = [given for given in answers.given if given[0] < event.step] + [(event.step, event.answer)]
        elif isinstance(event, events.Checkpoint):
            self.saved = event.step
        elif isinstance(event, events.ENDS):
            self.end, self.seconds_left = event, None

    def _take_step(self, event: events.Step) -> None:
        self.newest, self.step, self.steps, self.seconds_left = event, event.step, event.steps, event.seconds_left
        self.loss.add(event.step, event.loss)
        self.rate.add(event.step, event.learning_rate)
        self.speed.add(event.step, event.tokens_per_second)
        self.gradient.add(event.step, event.gradient_norm)
        self.tokens.add(event.step, event.tokens)
        self.seconds.add(event.step, event.tokens / event.tokens_per_second if event.tokens_per_second else 0.0)

    @cached_property
    def objective(self) -> Objective | None:
        """The run's objective; None if this version does not know it or run.json cannot be read."""
        try:
            table = keyed(read_json_object(self.run.folder / "run.json")).get(OBJECTIVE, {})
        except (OSError, ForeignTextError):
            return None
        key = table.get("key", DEFAULT_OBJECTIVE) if isinstance(table, Mapping) else None
        return objectives().get(key) if isinstance(key, str) else None

    def metric(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of one of the objective's metrics, from the validations that have it."""
        return [(step, values[key]) for step, values in self.metrics if key in values]

    @property
    def summary(self) -> Mapping[str, Any]:
        """The summary of a run that has ended; empty before."""
        return self.end.summary if isinstance(self.end, (events.Finished, events.StoppedByUser)) else {}


def _pairs(spans: Sequence[Span]) -> Iterator[Sequence[Span]]:
    for start in range(0, len(spans), 2):
        yield spans[start : start + 2]


def _joined(spans: Iterable[Span]) -> Span:
    found = list(spans)
    count = sum(span.count for span in found)
    mean = sum(span.mean * span.count for span in found) / count
    return Span(found[-1].step, mean, min(s.low for s in found), max(s.high for s in found), count)


Points = list[tuple[float, float]]


def training_loss(run: Watch, axis: Axis = "step", smoothing: Smoothing = "none") -> Points:
    """(x, loss) of every span; x is in steps, trained tokens or seconds of training, by `axis`."""
    forgets = SMOOTHINGS[smoothing]
    values = [span.mean for span in run.loss.spans]
    if forgets is not None:
        values = [value for _, value in run.loss.smoothed(run.steps, forgets)]
    return list(zip(_places(run, axis), values, strict=False))  # a step may be added meanwhile


def validation_loss(run: Watch, axis: Axis = "step") -> Points:
    """(x, loss) of every validation; the one before the first step is at 0."""
    return _placed(run, axis, [(step, loss) for step, loss, _ in run.validation])


def metric(run: Watch, key: str, axis: Axis = "step") -> Points:
    """(x, value) of one of the objective's metrics, as validation_loss() has the loss."""
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
    """The x value at which each span of the loss ends."""
    if axis == "step":
        return [float(span.step) for span in run.loss.spans]
    return list(accumulate(_sums(run.tokens if axis == "tokens" else run.seconds)))


def _sums(curve: Curve) -> list[float]:
    return [span.mean * span.count for span in curve.spans]
