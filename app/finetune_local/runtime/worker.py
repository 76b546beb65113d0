"""The worker process of a job: `python -m finetune_local.runtime.worker FOLDER HOME`. However it ends, it appends a last event."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_local.runtime.events import Event, Failed, Note
from finetune_local.runtime.job import Finished, Job, Progress, StoppedByUser
from finetune_local.runtime.kinds import Reporter, kinds
from finetune_local.runtime.start import log_line
from finetune_local.system.errors import DiskFailed, FinetuneError, SpecError, Stopped
from finetune_local.system.files import failure
from finetune_local.system.messages import Message, msg
from finetune_local.system.paths import Home
from finetune_local.system.private import write_privately

_SECONDS_BETWEEN = 0.2


class EventReporter:
    """Appends progress to the job's events, at most five times per second; raises Stopped if the user stopped the job."""

    def __init__(self, job: Job, stop_requested: Callable[[], bool]) -> None:
        self._job, self._stop_requested = job, stop_requested
        self._last: tuple[str, float] = ("", 0.0)

    def __call__(self, text: str, done: float | None = None, **facts: Any) -> None:
        """See kinds.Reporter."""
        self.check()
        before, when = self._last
        if text != before or time.monotonic() - when >= _SECONDS_BETWEEN or done == 1.0:
            self._last = (text, time.monotonic())
            self._job.append(Progress(text=text, done=done, facts=facts))

    def check(self) -> None:
        """See kinds.Reporter."""
        if self._stop_requested():
            raise Stopped(msg("stopped; the work done so far is kept."))

    def note(self, text: str) -> None:
        """See kinds.Reporter."""
        self._job.append(Note(text=text))


def stop_on_signals() -> Callable[[], bool]:
    """Catch SIGTERM and SIGINT; the returned function says whether one has arrived."""
    received: list[int] = []
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), lambda number, _frame: received.append(number))
    return lambda: bool(received)


def failure_event(error: BaseException, folder: Path, on_full_disk: Message) -> Failed:
    """The last event for an error. Errors of the disk become a sentence, wherever they were raised."""
    known = error if isinstance(error, FinetuneError) else failure(error, folder, on_full_disk)
    if known is not None:
        return Failed.of(known)
    trace = "".join(traceback.format_exception(error))
    return Failed(error="", message=f"{type(error).__name__}: {error}", exit_code=1, traceback=trace)


def main(arguments: list[str]) -> int:
    """Claim the job, do the work, and release it. A second worker of the same job exits without touching it."""
    write_privately()
    job, home = Job(Path(arguments[0])), Home(Path(arguments[1]))
    signalled = stop_on_signals()
    report = EventReporter(job, lambda: signalled() or job.stop_file.exists())
    with job.locked() as mine:
        if not mine:
            return FinetuneError.exit_code
        try:
            job.claim()
            return work(job, home, report)
        except DiskFailed as error:
            return _failed(job, error)
        finally:
            job.release()


def work(job: Job, home: Home, report: Reporter) -> int:
    """Do the work and append the last event; returns the exit code."""
    try:
        run = job.kind.run
        if run is None:
            raise SpecError(
                msg("there is no job '{name}'. Known: {names}.", name=job.kind.key, names=", ".join(kinds()))
            )
        job.append(Finished(result=run(job.arguments, home, report)))
    except Stopped:
        _append_last(job, StoppedByUser())
        return Stopped.exit_code
    except BaseException as error:  # noqa: BLE001 - the process's last act is to report why it ends, whatever the reason
        return _failed(job, error)
    return 0


def _failed(job: Job, error: BaseException) -> int:
    event = failure_event(error, job.folder, job.on_full_disk)
    _append_last(job, event)
    if event.traceback:
        log_line(event.traceback)
    return event.exit_code


def _append_last(job: Job, event: Event) -> None:
    """Append the last event. The reserved space is freed first, so that it fits on a full disk."""
    job.free_reserve()
    try:
        job.append(event)
    except (DiskFailed, OSError) as error:
        log_line(f"{error}\n{getattr(event, 'message', '')}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
