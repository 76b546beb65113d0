"""Start a run's worker and follow its events from the run folder alone, so that a reader can go away and come back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from finetune_local.runtime import start as workers
from finetune_local.spec.run import RunSpec
from finetune_local.system.errors import DamagedRun, FinetuneError, SpecError, Stopped, UserError, WorkerDied, typed
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home, located
from finetune_local.training import check, job_run
from finetune_local.training.events import ENDS, Event, Failed, Note, StoppedByUser
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.runs import Run


def create_checked(
    specs: Sequence[RunSpec], home: Home, progress: Callable[[str, float | None], None], made_from: str | None = None
) -> list[tuple[Run, list[Note]]]:
    """Check specs that are to be trained at once, and make a run of each: with the notes for the user, which are its first
    events. `made_from` is the run whose settings they are. Raises UserErrors; all of them are made or none is."""
    begun: list[tuple[Run, list[Note]]] = []
    try:
        for asked, (spec, notes) in zip(specs, check.check_together(specs, home, progress), strict=True):
            found = asked.model_copy(update={"model": asked.model.model_copy(update={"id": spec.model.id})})
            run = runs.create(home, with_absolute_files(spec), asked=with_absolute_files(found), made_from=made_from)
            begun.append((run, notes))
            for told in notes:
                run.append(told)
    except FinetuneError:
        for run, _ in begun:
            runs.delete(run)
        raise
    return begun


def create_unchecked(spec: RunSpec, home: Home, made_from: str | None = None) -> Run:
    """A run whose worker checks the spec before all else. Raises SpecError for a file that is not there, or a taken name.

    `made_from` is the run whose settings it was begun from, where it is one.
    """
    check.check_files(spec)
    return runs.create(home, with_absolute_files(spec), made_from=made_from)


def forget_untrained(run: Run, last: Event) -> bool:
    """Remove a run that ended before its training by the user's mistake: its name is free again once that is mended."""
    mistaken = isinstance(last, Failed) and last.exit_code == UserError.exit_code and last.error != DamagedRun.code
    if mistaken and not any(run.checkpoints.glob("*")) and run.folder.exists():
        run.wait_for_exit()
        runs.delete(run)
        return True
    return False


def with_absolute_files(spec: RunSpec) -> RunSpec:
    """Paths in run.json hold wherever they are read from."""
    absolute = {
        field: tuple(str(located(name).resolve()) for name in getattr(spec.data, field))
        for field in ("files", "validation_files")
    }
    return spec.model_copy(update={"data": spec.data.model_copy(update=absolute)})


POLL_SECONDS = 0.1


def start(run: Run, home: Home) -> int:
    """Start the worker process of a run that has none; returns where its events will begin. Raises SpecError.

    Of two that are started at once the second ends by itself; following the run shows the first.
    """
    return start_all([run], home)[0]


def start_all(runs: Sequence[Run], home: Home) -> list[int]:
    """Start one worker process for several runs on one base; returns where the events of each will begin."""
    for run in runs:
        if run.alive():
            raise SpecError(msg("run '{name}' is being trained already.", name=run.name))
    positions = [run.events_end() for run in runs]
    workers.start(runs, job_run.KIND.worker, [*(str(run.folder) for run in runs), str(home.root)])
    return positions


def follow(run: Run, position: int = 0) -> Iterator[Event]:
    """Events from a position in events.jsonl (bytes) to the last one. Raises WorkerDied where the worker ends without one."""
    for _, event in follow_all([(run, position)]):
        yield event


def follow_all(places: Sequence[tuple[Run, int]]) -> Iterator[tuple[Run, Event]]:
    """The same for several runs at once. Raises WorkerDied after the events of the other runs."""
    tails = [(run, run.tail(position)) for run, position in places]
    died: list[Run] = []
    while tails:
        for run, tail in list(tails):
            alive = run.alive()  # checked before reading, so that a last event is never missed
            events = _up_to_the_end(tail.read())
            for event in events:
                yield run, event
            if ended := bool(events) and isinstance(events[-1], ENDS):
                if not [other for other in tails if other[1] is not tail]:
                    run.wait_for_exit()
            elif not alive and not events:
                run.wait_for_exit()
                died.append(run)
                ended = True
            if ended:
                tails.remove((run, tail))
        if tails:
            time.sleep(POLL_SECONDS)
    if died:
        raise _silent(died)


def go_on(runs: Sequence[Run]) -> str:
    """The commands that resume runs, each by itself."""
    return "go on with: " + ", ".join(f"finetune-local resume {typed(run.name)}" for run in runs)


def _up_to_the_end(events: Sequence[Event]) -> list[Event]:
    """Events up to a run's last one: what a later worker of the same run appends belongs to its own readers."""
    result: list[Event] = []
    for event in events:
        result.append(event)
        if isinstance(event, ENDS):
            break
    return result


def raise_for(event: Event, run: Run) -> None:
    """Raise the error that a run's last event stands for; return where the run has finished."""
    if isinstance(event, StoppedByUser):
        raise Stopped(
            msg(
                "stopped after step {step}; everything is saved. Go on with: finetune-local resume {name}",
                step=event.step,
                name=typed(run.name),
            )
        )
    if isinstance(event, Failed):
        error = event.exception()
        if isinstance(error, FinetuneError):
            raise error
        raise RuntimeError(f"the training process failed ({run.log}):\n{event.traceback}")


def _silent(died: Sequence[Run]) -> WorkerDied:
    """The error for runs whose process ended without a last event."""
    words = died[0].log_tail()
    said = msg(". Its last words: ") + " | ".join(words) if words else msg(" (killed, or out of memory)")
    return WorkerDied(
        msg(
            "the training process ended without a word{said}. What was saved is intact; {how}",
            said=said,
            how=go_on(died),
        )
    )
