"""The training process: `python -m finetune_local.train.worker RUN HOME`. Events go to the run's events.jsonl, nothing to a pipe.

It lives in a session of its own, so that neither Ctrl-C nor a closed window ends it; a file called `stop` does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from finetune_local.errors import FinetuneError
from finetune_local.files import disk_full, write_text
from finetune_local.paths import Home
from finetune_local.train.checkpoint import RESUME
from finetune_local.train.events import Event, Failed
from finetune_local.train.runs import Run

RESERVE = ".reserve"
RESERVE_BYTES = 65536


def work(run: Run, home: Home) -> int:
    """Train a run from where it stands; returns the exit code. Every way to end writes a last event."""
    from finetune_local.train.loop import Loop
    from finetune_local.train.setup import make_ready

    asked_by_signal = False

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal asked_by_signal
        asked_by_signal = True

    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), on_signal)
    try:
        ready = None
        for item in make_ready(run, home):
            if isinstance(item, Event):
                run.append(item)
            else:
                ready = item
        assert ready is not None
        last: Event | None = None
        with disk_full(run.folder, RESUME):
            for last in Loop(ready, lambda: asked_by_signal or run.stop_file.exists()).events():
                run.append(last)
                write_report(run, last)
        return 130 if last is not None and last.kind == "stopped" else 0
    except FinetuneError as error:
        return _fail(run, Failed(error=type(error).__name__, message=str(error), exit_code=error.exit_code))
    except BaseException as error:  # noqa: BLE001 - the process's last act is to say why it ends, whatever it was
        return _fail(run, _defect(error))


def write_report(run: Run, last: Event) -> None:
    """report.md: the run in a few lines for people; written when the run ends."""
    if last.kind not in ("finished", "stopped"):
        return
    summary = last.as_json()["summary"]
    lines = [f"# {run.name}", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in summary.items())]
    write_text(run.folder / "report.md", "\n".join(lines) + "\n")


def _defect(error: BaseException) -> Failed:
    trace = "".join(traceback.format_exception(error))
    return Failed(error="", message=f"{type(error).__name__}: {error}", exit_code=1, traceback=trace)


def _fail(run: Run, event: Failed) -> int:
    """Write the last event; on a full disk, in the room that was kept for it."""
    (run.folder / RESERVE).unlink(missing_ok=True)
    print(event.traceback or event.message, file=sys.stderr, flush=True)  # noqa: T201 - stderr is worker.log
    run.append(event)
    return event.exit_code


def main(arguments: list[str]) -> int:
    """Take the run over, train, and give it back. A second worker of the same run touches nothing and ends."""
    import psutil

    run, home = Run(Path(arguments[0])), Home(Path(arguments[1]))
    with run.taken() as mine:
        if not mine:
            return FinetuneError.exit_code
        run.repair()
        started = psutil.Process().create_time()
        write_text(run.worker_file, json.dumps({"pid": os.getpid(), "started": started}) + "\n")
        (run.folder / RESERVE).write_bytes(b"\0" * RESERVE_BYTES)
        try:
            return work(run, home)
        finally:
            for file in (run.worker_file, run.folder / RESERVE, run.stop_file):
                file.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
