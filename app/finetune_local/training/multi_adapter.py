"""Run loops: one alone, or several at once on one base, one pass of it for all.

Each loop keeps its own data, steps, learning rate, validation and folder; what they share is the session. A loop that ends or
fails leaves the others going on.
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
    """Train one run to its end; the last event is Finished or StoppedByUser. Raises what Loop.work does."""
    work, answer = loop.work(), None
    while (wanted := (yield from _until_wanted(work, answer))) is not None:
        answer = take_alone(loop.ready.session, wanted)


def events_of_all(loops: Sequence[Loop]) -> Iterator[tuple[Loop, Event]]:
    """Train several runs on one session; the last event of each is Finished, StoppedByUser or Failed."""
    works = {number: loop.work() for number, loop in enumerate(loops)}
    answers: dict[int, Answer] = dict.fromkeys(works)
    too_many: float = math.inf  # tokens at once that there was no memory for: not to be tried again at every step
    while works:
        wanted: dict[int, PendingStep] = {}
        for number in list(works):
            try:
                wish = yield from _named(loops[number], _until_wanted(works[number], answers[number]))
            except FinetuneError as error:
                yield loops[number], Failed.of(error)
                wish = None
            if wish is None:
                del works[number]
            else:
                wanted[number] = wish
        if wanted:
            session, wishes = loops[0].ready.session, list(wanted.values())
            taken = _take(session, wishes) if len(wishes) > 1 and _tokens(wishes) < too_many else None
            if taken is None:
                too_many = min(too_many, _tokens(wishes)) if len(wishes) > 1 else too_many
                taken = [take_alone(session, wish) for wish in wishes]
            answers = dict(zip(wanted, taken, strict=True))


def _until_wanted(work: Pending, answer: Answer) -> Generator[Event, None, PendingStep | None]:
    """Give a loop the answer it waits for and pass on its events up to the next step it wants; None where it has ended."""
    try:
        item = work.throw(answer) if isinstance(answer, OutOfMemory) else work.send(answer)
        while not isinstance(item, PendingStep):
            yield item
            item = next(work)
    except StopIteration:
        return None
    return item


def _named(
    loop: Loop, told: Generator[Event, None, PendingStep | None]
) -> Generator[tuple[Loop, Event], None, PendingStep | None]:
    """The same events, each with its loop."""
    while True:
        try:
            event = next(told)
        except StopIteration as end:
            wish: PendingStep | None = end.value
            return wish
        yield loop, event


def _take(session: Session, wanted: Sequence[PendingStep]) -> Sequence[StepResult | OutOfMemory] | None:
    """One step of each, in one pass; None where there is not memory enough for all at once."""
    session.seed(wanted[0].seed)
    try:
        return session.step_many([wish.request for wish in wanted])
    except OutOfMemory:
        return None


def _tokens(wanted: Sequence[PendingStep]) -> int:
    """Tokens, with padding, of the largest micro-batches, which are computed at once."""
    return sum(max((batch.ids.size for batch in wish.request.batches), default=0) for wish in wanted)
