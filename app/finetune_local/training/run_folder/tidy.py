"""What a worker does after a run's last event: write report.md, remove its own files. If it was killed there, this is done later."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from finetune_local.system.errors import RunError
from finetune_local.system.files import ASIDE, disk_full, write_text
from finetune_local.training.checkpoints.checkpoint import RESUME
from finetune_local.training.events import ENDS, Event, Finished, StoppedByUser
from finetune_local.training.run_folder.runs import Run

REPORT = "report.md"


def write_report(run: Run, last: Event) -> None:
    """Write report.md, the run's summary as a table, if the run finished or was stopped. Raises DiskFailed."""
    if isinstance(last, (Finished, StoppedByUser)):
        write_text(run.folder / REPORT, _report(run, last), RESUME)


def untidy(run: Run) -> list[str]:
    """What a worker that was killed after its last event left unfinished: names of files to be written or removed."""
    last = run.last_event()
    if not isinstance(last, ENDS):
        return []
    found = [file.name for file in (run.worker_file, run.reserve_file) if file.exists()]
    found += sorted(place.name for folder in (run.folder, run.checkpoints) for place in folder.glob(ASIDE + "*"))
    if isinstance(last, (Finished, StoppedByUser)) and _lacks_report(run, last):
        found.append(REPORT)
    return found


def _lacks_report(run: Run, last: Finished | StoppedByUser) -> bool:
    """Whether report.md is missing or of an earlier end. After a regular end it is not compared: the user may have edited it."""
    if not (run.folder / REPORT).exists():
        return True
    return run.worker_file.exists() and _written(run) != _report(run, last)


def complete(run: Run) -> list[str]:
    """Finish what untidy() lists; returns that list. Does nothing while the run has a worker. Raises DiskFailed."""
    if run.alive() or not untidy(run):
        return []
    with run.locked() as mine:
        if not mine:
            return []
        done, last = untidy(run), run.last_event()
        with disk_full(run.folder, RESUME):
            if last is not None and REPORT in done:
                write_report(run, last)
            run.sweep()
        run.release()
        return done


def complete_all(runs: Iterable[Run]) -> None:
    """complete() for each run; failures are ignored, because callers only want to read the runs."""
    for run in runs:
        with suppress(OSError, RunError):
            complete(run)


def _report(run: Run, last: Finished | StoppedByUser) -> str:
    lines = [
        f"# {run.name}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in last.summary.items()),
    ]
    return "\n".join(lines) + "\n"


def _written(run: Run) -> str:
    try:
        return (run.folder / REPORT).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
