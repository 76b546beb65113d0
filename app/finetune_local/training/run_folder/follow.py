"""Create runs, start their workers, and follow their events.

Events are read from the run folder alone, so a reader can leave and return.
"""

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

POLL_SECONDS = 0.1


def create_checked(
    specs: Sequence[RunSpec], home: Home, progress: Callable[[str, float | None], None], made_from: str | None = None
) -> list[tuple[Run, list[Note]]]:
    """Check specs that are to be trained at once and create a run of each; returns the runs with notes for the user.

    The notes are also each run's first events. `made_from` names the run that the settings were taken from. Raises UserErrors, and
    then creates none.
    """
    begun: list[tuple[Run, list[Note]]] = []
    try:
        for original, (spec, notes) in zip(specs, check.check_together(specs, home, progress), strict=True):
            as_set = original.model_copy(update={"model": original.model.model_copy(update={"id": spec.model.id})})
            run = runs.create(home, with_absolute_files(spec), as_set=with_absolute_files(as_set), made_from=made_from)
            begun.append((run, notes))
            for note in notes:
                run.append(note)
    except FinetuneError:
        for run, _ in begun:
            runs.delete(run)
        raise
    return begun


def create_unchecked(spec: RunSpec, home: Home, made_from: str | None = None) -> Run:
    """Create a run whose worker will check the spec. Raises SpecError if a data file is missing or the name is taken.

    `made_from` names the run that the settings were taken from.
    """
    check.check_files(spec)
    return runs.create(home, with_absolute_files(spec), made_from=made_from)


def forget_untrained(run: Run, last: Event) -> bool:
    """Delete a run that failed before training because of a user's mistake, so that its name is free; returns whether it did."""
    mistaken = isinstance(last, Failed) and last.exit_code == UserError.exit_code and last.error != DamagedRun.code
    if mistaken and not any(run.checkpoints.glob("*")) and run.folder.exists():
        run.wait_for_exit()
        runs.delete(run)
        return True
    return False


def with_absolute_files(spec: RunSpec) -> RunSpec:
    """The spec with absolute data paths, so that run.json can be used from any folder."""
    absolute = {
        field: tuple(str(located(name).resolve()) for name in getattr(spec.data, field))
        for field in ("files", "validation_files")
    }
    return spec.model_copy(update={"data": spec.data.model_copy(update=absolute)})


def start(run: Run, home: Home) -> int:
    """Start a run's worker process; returns the byte position in events.jsonl at which its events begin.

    Raises SpecError if the run has a worker. Of two workers started at the same time the second exits; following the run then shows
    the first.
    """
    return start_all([run], home)[0]


def start_all(runs: Sequence[Run], home: Home) -> list[int]:
    """Start one worker process for several runs on one base; returns the byte position of each run's events."""
    for run in runs:
        if run.alive():
            raise SpecError(msg("run '{name}' is already training.", name=run.name))
    positions = [run.events_end() for run in runs]
    workers.start(runs, job_run.KIND.worker, [*(str(run.folder) for run in runs), str(home.root)])
    return positions


def follow(run: Run, position: int = 0) -> Iterator[Event]:
    """Yield events from a byte position in events.jsonl up to the run's last one. Raises WorkerDied if the worker ends without it."""
    for _, event in follow_all([(run, position)]):
        yield event


def follow_all(places: Sequence[tuple[Run, int]]) -> Iterator[tuple[Run, Event]]:
    """As follow(), for several runs at once. Raises WorkerDied after the events of the other runs."""
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


def resume_commands(runs: Sequence[Run]) -> str:
    """A sentence with the command that resumes each run."""
    return "resume with: " + ", ".join(f"finetune-local resume {typed(run.name)}" for run in runs)


def _up_to_the_end(events: Sequence[Event]) -> list[Event]:
    """Events up to and including a run's last one; later events were appended by another worker of the run."""
    result: list[Event] = []
    for event in events:
        result.append(event)
        if isinstance(event, ENDS):
            break
    return result


def raise_for(event: Event, run: Run) -> None:
    """Raise the error that a run's last event reports; return if the run finished."""
    if isinstance(event, StoppedByUser):
        raise Stopped(
            msg(
                "stopped after step {step}; everything is saved. Resume it with: finetune-local resume {name}",
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
    lines = died[0].log_tail()
    tail = msg(". Its last output: ") + " | ".join(lines) if lines else msg(" (killed, or out of memory)")
    return WorkerDied(
        msg(
            "the training process ended unexpectedly{output}. Everything saved so far is intact; {how}",
            output=tail,
            how=resume_commands(died),
        )
    )
