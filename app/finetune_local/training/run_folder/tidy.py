"""What comes after a run's last word: report.md, and the end of the worker's own files. A kill there is made good later."""

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
    """report.md: the run in a few lines for people; written when the run ends. Raises DiskFailed."""
    if isinstance(last, (Finished, StoppedByUser)):
        write_text(run.folder / REPORT, _report(run, last), RESUME)


def untidy(run: Run) -> list[str]:
    """What a worker that was killed after its last word left undone: files to be written, and to be removed."""
    last = run.last_event()
    if not isinstance(last, ENDS):
        return []
    found = [file.name for file in (run.worker_file, run.reserve_file) if file.exists()]
    found += sorted(place.name for folder in (run.folder, run.checkpoints) for place in folder.glob(ASIDE + "*"))
    if isinstance(last, (Finished, StoppedByUser)) and _lacks_report(run, last):
        found.append(REPORT)
    return found


def _lacks_report(run: Run, last: Finished | StoppedByUser) -> bool:
    """Whether report.md is not there, or is of an earlier end. Once a worker has gone in order it is the user's to change."""
    if not (run.folder / REPORT).exists():
        return True
    return run.worker_file.exists() and _written(run) != _report(run, last)


def complete(run: Run) -> list[str]:
    """Do what untidy() names; returns it. Nothing is done while a worker has the run. Raises DiskFailed."""
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
    """complete() of each, as far as that can be done now: for those who only want to look at them."""
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
