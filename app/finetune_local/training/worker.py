"""The training process: `python -m finetune_local.training.worker RUN... HOME`, several runs on one base at once. Events go to the run's events.jsonl, nothing to a pipe.

It lives in a session of its own, so that neither Ctrl-C nor a closed window ends it; a file called `stop` does.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from finetune_local.runtime.start import log_line
from finetune_local.system.errors import DiskFailed, FinetuneError
from finetune_local.system.files import disk_full, failure
from finetune_local.system.messages import message_of
from finetune_local.system.paths import Home
from finetune_local.system.private import write_privately
from finetune_local.training.checkpoint import RESUME
from finetune_local.training.events import ENDS, Event, Failed
from finetune_local.training.run_folder.runs import Run
from finetune_local.training.run_folder.tidy import write_report


def work(runs: Sequence[Run], home: Home, give_back: Callable[[Run], None]) -> int:
    """Train runs from where they stand; returns the exit code, the worst of them. Every way to end writes a last event.

    `give_back` is called for each of several runs as it ends, while the others go on.
    """
    from finetune_local.training.loop import Loop
    from finetune_local.training.multi_adapter import events, events_of_all
    from finetune_local.training.setup import Ready, make_ready

    asked_by_signal = False

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal asked_by_signal
        asked_by_signal = True

    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), on_signal)
    loops: list[Loop] = []
    beginning: Run | None = None
    codes: dict[str, int] = {}
    try:
        for run in runs:
            beginning = run
            ready: Ready | None = None
            for item in make_ready(run, home, loops[0].ready if loops else None):
                if isinstance(item, Event):
                    run.append(item)
                else:
                    ready = item
            assert ready is not None
            stop = lambda own=run: asked_by_signal or own.stop_file.exists()  # noqa: E731
            loops.append(Loop(ready, stop, run.to_finish))
        beginning = None
        with ExitStack() as stack:
            for run in runs:
                stack.enter_context(disk_full(run.folder, RESUME))
            alone = ((loops[0], event) for event in events(loops[0]))
            for loop, event in alone if len(loops) == 1 else events_of_all(loops):
                run = loop.ready.run
                run.append(event)
                if isinstance(event, ENDS):
                    codes[run.name] = event.as_json().get("exit_code", 130 if event.kind == "stopped" else 0)
                    _say_after(lambda: write_report(run, event))  # noqa: B023 - called at once
                    give_back(run)
        return max(codes.values())
    except FinetuneError as error:
        told = Failed.of(error)
        if (
            beginning is not None and len(runs) > 1
        ):  # none of them begins, and the user has to know which is to be mended
            told = replace(told, message=f"run '{beginning.name}': {told.message}")
        return _fail([run for run in runs if run.name not in codes], told)
    except BaseException as error:  # noqa: BLE001 - the process's last act is to say why it ends, whatever it was
        return _fail([run for run in runs if run.name not in codes], _defect(beginning or runs[0], error))


def _defect(run: Run, error: BaseException) -> Failed:
    """The last event for what nobody foresaw; what a disk refused is told in a sentence all the same."""
    if (told := failure(error, run.folder, RESUME)) is not None:
        return Failed.of(told)
    trace = "".join(traceback.format_exception(error))
    return Failed(error="", message=f"{type(error).__name__}: {error}", exit_code=1, traceback=trace)


def _fail(runs: Sequence[Run], event: Failed) -> int:
    """Write the last event of every run that has not ended, on a full disk in the room that was kept for it; then what else is
    to be said, which may fail."""
    for run in runs:
        run.free_reserve()
        _say_after(lambda: run.append(event))  # noqa: B023 - called at once
    log_line(event.traceback or event.message)
    return event.exit_code


def _say_after(act: Callable[[], None]) -> None:
    """Do what must not keep the worker from its end; why it could not be done goes to the log."""
    try:
        act()
    except (FinetuneError, OSError) as error:
        log_line(message_of(error))


def main(arguments: list[str]) -> int:
    """Take the runs over, train, and give them back. A second worker of one of them touches nothing and ends."""
    write_privately()
    *folders, home = arguments
    runs = [Run(Path(folder)) for folder in folders]
    holds = {run.folder: ExitStack() for run in runs}

    def give_back(run: Run) -> None:
        run.release()
        holds.pop(run.folder).close()

    with ExitStack() as stack:
        for run in runs:
            try:
                if not stack.enter_context(holds[run.folder]).enter_context(run.locked()):
                    return FinetuneError.exit_code
            except (OSError, FinetuneError) as error:  # nobody holds the run, so nothing may be written in it
                log_line(str(failure(error, run.folder, RESUME) or error))
                return FinetuneError.exit_code
        try:
            for run in runs:
                with disk_full(run.folder, RESUME):
                    run.repair()
                run.claim()
            return work(runs, Home(Path(home)), give_back)
        except DiskFailed as error:
            return _fail(runs, Failed.of(error))
        finally:
            for run in runs:
                if run.folder in holds:
                    give_back(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
