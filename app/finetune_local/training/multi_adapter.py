"""Drive training loops: one alone, or several adapters on one base, whose forward and backward pass they share.

Each loop has its own data, steps, learning rate, validation and run folder; only the session is shared. A loop that ends or fails
does not stop the others.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence

from finetune_local.backend import Session, StepResult
from finetune_local.system.errors import FinetuneError, OutOfMemory
from finetune_local.training.events import Event, Failed
from finetune_local.training.loop import Loop
from finetune_local.training.steps import Pending, PendingStep, take_alone

Answer = StepResult | OutOfMemory | None


def events(loop: Loop) -> Iterator[Event]:
    """Train one run to its end. The last event is Finished or StoppedByUser. Raises what Loop.work() raises."""
    work, answer = loop.work(), None
    while (pending := (yield from _until_pending(work, answer))) is not None:
        answer = take_alone(loop.ready.session, pending)


def events_of_all(loops: Sequence[Loop]) -> Iterator[tuple[Loop, Event]]:
    """Train several runs on one session. The last event of each is Finished, StoppedByUser or Failed."""
    works = {number: loop.work() for number, loop in enumerate(loops)}
    answers: dict[int, Answer] = dict.fromkeys(works)
    too_many: float = math.inf  # tokens at once that did not fit, so that they are not tried again at every step
    while works:
        pending: dict[int, PendingStep] = {}
        for number in list(works):
            try:
                step = yield from _labelled(loops[number], _until_pending(works[number], answers[number]))
            except FinetuneError as error:
                yield loops[number], Failed.of(error)
                step = None
            if step is None:
                del works[number]
            else:
                pending[number] = step
        if pending:
            session, steps = loops[0].ready.session, list(pending.values())
            taken = _take(session, steps) if len(steps) > 1 and _tokens(steps) < too_many else None
            if taken is None:
                too_many = min(too_many, _tokens(steps)) if len(steps) > 1 else too_many
                taken = [take_alone(session, step) for step in steps]
            answers = dict(zip(pending, taken, strict=True))


def _until_pending(work: Pending, answer: Answer) -> Generator[Event, None, PendingStep | None]:
    """Resume a loop with the result of its pending step and yield its events; returns its next pending step, None at its end."""
    try:
        item = work.throw(answer) if isinstance(answer, OutOfMemory) else work.send(answer)
        while not isinstance(item, PendingStep):
            yield item
            item = next(work)
    except StopIteration:
        return None
    return item


def _labelled(
    loop: Loop, stream: Generator[Event, None, PendingStep | None]
) -> Generator[tuple[Loop, Event], None, PendingStep | None]:
    """The events of `stream`, each paired with its loop."""
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            step: PendingStep | None = end.value
            return step
        yield loop, event


def _take(session: Session, steps: Sequence[PendingStep]) -> Sequence[StepResult | OutOfMemory] | None:
    """Take one step of each loop in a shared pass; None if they do not fit into memory together."""
    session.seed(steps[0].seed)
    try:
        return session.step_many([step.request for step in steps])
    except OutOfMemory:
        return None


def _tokens(steps: Sequence[PendingStep]) -> int:
    """Tokens, padding included, of each step's largest micro-batch: these are computed at once."""
    return sum(max((batch.ids.size for batch in step.request.batches), default=0) for step in steps)
