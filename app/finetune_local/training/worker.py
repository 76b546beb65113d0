"""The training process: `python -m finetune_local.training.worker RUN... HOME`; several runs train at once on one base.

Events go to each run's events.jsonl, nothing to a pipe. A file named `stop` in the run folder ends the
run; Ctrl-C in a terminal and a closed window do not reach this process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from finetune_local.runtime.start import log_line
from finetune_local.runtime.worker import failure_event, stop_on_signals
from finetune_local.system.errors import DiskFailed, FinetuneError
from finetune_local.system.files import disk_full, failure
from finetune_local.system.messages import message_of, msg
from finetune_local.system.paths import Home
from finetune_local.system.private import write_privately
from finetune_local.training.checkpoints.checkpoint import RESUME
from finetune_local.training.events import Event, Failed
from finetune_local.training.run_folder.runs import Run
from finetune_local.training.run_folder.tidy import write_report


def work(runs: Sequence[Run], home: Home, release: Callable[[Run], None]) -> int:
    """Train runs from their last checkpoints; returns the highest exit code. However a run ends, its last event is appended.

    `release` is called for each run when it ends, while the others continue.
    """
    from finetune_local.training.loop import Loop
    from finetune_local.training.multi_adapter import events, events_of_all
    from finetune_local.training.setup import Ready, make_ready

    signalled = stop_on_signals()
    loops: list[Loop] = []
    preparing: Run | None = None
    codes: dict[str, int] = {}
    try:
        for run in runs:
            preparing = run
            ready: Ready | None = None
            for item in make_ready(run, home, loops[0].ready if loops else None):
                if isinstance(item, Event):
                    run.append(item)
                else:
                    ready = item
            assert ready is not None
            stop = lambda own=run: signalled() or own.stop_file.exists()  # noqa: E731
            loops.append(Loop(ready, stop, run.to_finish))
        preparing = None
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(disk_full(run.folder, RESUME))
            alone = ((loops[0], event) for event in events(loops[0]))
            for loop, event in alone if len(loops) == 1 else events_of_all(loops):
                run = loop.ready.run
                run.append(event)
                if event.end is not None:
                    codes[run.name] = event.as_json().get("exit_code", 130 if event.kind == "stopped" else 0)
                    _attempt(lambda: write_report(run, event))  # noqa: B023 - called at once
                    release(run)
        return max(codes.values())
    except BaseException as error:  # noqa: BLE001 - the process's last act is to report why it ends, whatever the reason
        event = failure_event(error, (preparing or runs[0]).folder, RESUME)
        if isinstance(error, FinetuneError) and preparing is not None and len(runs) > 1:
            # No run starts, and the user has to know which one to correct.
            event = replace(event, message=msg("run '{run}': {error}", run=preparing.name, error=event.message))
        return _fail([run for run in runs if run.name not in codes], event)


def _fail(runs: Sequence[Run], event: Failed) -> int:
    """Append the last event of every run that has not ended, then write to the log.

    The reserved space is freed first: on a full disk the event still fits.
    """
    for run in runs:
        run.free_reserve()
        _attempt(lambda: run.append(event))  # noqa: B023 - called at once
    log_line(event.traceback or event.message)
    return event.exit_code


def _attempt(act: Callable[[], None]) -> None:
    """Call `act`, whose failure must not keep the worker from ending; the failure goes to the log."""
    try:
        act()
    except (FinetuneError, OSError) as error:
        log_line(message_of(error))


def main(arguments: list[str]) -> int:
    """Claim the runs, train, and release them. A second worker of one of them exits without touching it."""
    write_privately()
    *folders, home = arguments
    runs = [Run(Path(folder)) for folder in folders]
    holds = {run.folder: ExitStack() for run in runs}

    def release(run: Run) -> None:
        run.release()
        holds.pop(run.folder).close()

    with ExitStack() as stack:
        for run in runs:
            try:
                if not stack.enter_context(holds[run.folder]).enter_context(run.locked()):
                    return FinetuneError.exit_code
            except (OSError, FinetuneError) as error:  # not locked: nothing may be written in the run folder
                log_line(str(failure(error, run.folder, RESUME) or error))
                return FinetuneError.exit_code
        try:
            for run in runs:
                with disk_full(run.folder, RESUME):
                    run.repair()
                run.claim()
            return work(runs, Home(Path(home)), release)
        except DiskFailed as error:
            return _fail(runs, Failed.of(error))
        finally:
            for run in runs:
                if run.folder in holds:
                    release(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
