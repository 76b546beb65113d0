"""Run loops: one alone, or several at once on one base, one pass of it for all.

Each loop keeps its own data, steps, learning rate, validation and folder; what they share is the session. A loop that ends or
fails leaves the others going on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from finetune_local.backend import Session, StepResult
from finetune_local.errors import FinetuneError, OutOfMemory
from finetune_local.train.events import Event, Failed
from finetune_local.train.loop import Loop, Wanted, Work

Answer = StepResult | OutOfMemory | None


def events(loop: Loop) -> Iterator[Event]:
    """Train one run to its end; the last event is Finished or StoppedByUser. Raises what Loop.work does."""
    work, answer = loop.work(), None
    while (wanted := (yield from _until_wanted(work, answer))) is not None:
        (answer,) = _take(loop.ready.session, [wanted])


def events_of_all(loops: Sequence[Loop]) -> Iterator[tuple[Loop, Event]]:
    """Train several runs on one session; the last event of each is Finished, StoppedByUser or Failed."""
    works = {number: loop.work() for number, loop in enumerate(loops)}
    answers: dict[int, Answer] = dict.fromkeys(works)
    while works:
        wanted: dict[int, Wanted] = {}
        for number in list(works):
            try:
                wish = yield from _named(loops[number], _until_wanted(works[number], answers[number]))
            except FinetuneError as error:
                yield loops[number], failure(error)
                wish = None
            if wish is None:
                del works[number]
            else:
                wanted[number] = wish
        if wanted:
            taken = _take(loops[0].ready.session, list(wanted.values()))
            answers = dict(zip(wanted, taken, strict=True))


def failure(error: FinetuneError) -> Failed:
    """The event that tells an error."""
    return Failed(error=type(error).__name__, message=str(error), exit_code=error.exit_code)


def _until_wanted(work: Work, answer: Answer) -> Generator[Event, None, Wanted | None]:
    """Give a loop the answer it waits for and pass on its events up to the next step it wants; None where it has ended."""
    try:
        item = work.throw(answer) if isinstance(answer, OutOfMemory) else work.send(answer)
        while not isinstance(item, Wanted):
            yield item
            item = next(work)
    except StopIteration:
        return None
    return item


def _named(
    loop: Loop, told: Generator[Event, None, Wanted | None]
) -> Generator[tuple[Loop, Event], None, Wanted | None]:
    """The same events, each with its loop."""
    while True:
        try:
            event = next(told)
        except StopIteration as end:
            wish: Wanted | None = end.value
            return wish
        yield loop, event


def _take(session: Session, wanted: Sequence[Wanted]) -> list[StepResult | OutOfMemory]:
    """One step of each. Where there is not memory enough for all at once, one after another."""
    session.seed(wanted[0].seed)
    try:
        return [*session.step_together([wish.share for wish in wanted])]
    except OutOfMemory as error:
        return [error] if len(wanted) == 1 else [_take(session, [wish])[0] for wish in wanted]
