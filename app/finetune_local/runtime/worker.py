"""The process of a job: `python -m finetune_local.runtime.worker JOB HOME`. Every way to end writes a last line."""

from __future__ import annotations

import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from finetune_local.runtime.job import Job
from finetune_local.runtime.kinds import work_of
from finetune_local.runtime.process_folder import log_line
from finetune_local.system.errors import DiskFailed, FinetuneError, Stopped
from finetune_local.system.files import failure
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home
from finetune_local.system.private import write_privately

_SECONDS_BETWEEN = 0.2


class Teller:
    """Progress into the job's events, a few times a second, and the place where a wish to stop is noticed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.asked_by_signal = False
        self._last: tuple[str, float] = ("", 0.0)

    def __call__(self, text: str, done: float | None = None, **facts: Any) -> None:
        """See kinds.Tell."""
        self.check()
        before, when = self._last
        if text != before or time.monotonic() - when >= _SECONDS_BETWEEN or done == 1.0:
            self._last = (text, time.monotonic())
            self.job.append("progress", text=text, done=done, **({"facts": facts} if facts else {}))

    def check(self) -> None:
        """See kinds.Tell."""
        if self.asked_by_signal or self.job.stop_file.exists():
            raise Stopped(msg("stopped; what was done so far is kept."))

    def note(self, text: str) -> None:
        """See kinds.Tell."""
        self.job.append("note", text=text)


def main(arguments: list[str]) -> int:
    """Take the job over, work, and give it back. A second worker of the same job touches nothing."""
    write_privately()
    job, home = Job(Path(arguments[0])), Home(Path(arguments[1]))
    tell = Teller(job)

    def on_signal(_number: int, _frame: object) -> None:
        tell.asked_by_signal = True

    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), on_signal)
    with job.locked() as mine:
        if not mine:
            return FinetuneError.exit_code
        try:
            job.claim()
            return work(job, home, tell)
        except DiskFailed as error:
            return _failed(job, error)
        finally:
            job.release()


def work(job: Job, home: Home, tell: Any) -> int:
    """Do it and write the last line; the exit code."""
    try:
        result = work_of(job.kind)(job.arguments, home, tell)
        job.append("done", result=result)
    except Stopped:
        _last(job, "stopped")
        return Stopped.exit_code
    except BaseException as error:  # noqa: BLE001 - the process's last act is to say why it ends, whatever it was
        return _failed(job, error)
    return 0


def _failed(job: Job, error: BaseException) -> int:
    """The last line of a job that failed; what a disk refused is told in a sentence wherever it happened."""
    told = error if isinstance(error, FinetuneError) else failure(error, job.folder, job.on_full_disk)
    if told is not None:
        _last(job, "failed", error=type(told).__name__, message=str(told), traceback="")
        return told.exit_code
    trace = "".join(traceback.format_exception(error))
    _last(job, "failed", error="", message=f"{type(error).__name__}: {error}", traceback=trace)
    log_line(trace)
    return 1


def _last(job: Job, event: str, **facts: Any) -> None:
    """The last line, on a full disk in the room that was kept for it, before anything else that can fail."""
    job.free_reserve()
    try:
        job.append(event, **facts)
    except (DiskFailed, OSError) as error:
        log_line(f"{error}\n{facts.get('message', '')}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
