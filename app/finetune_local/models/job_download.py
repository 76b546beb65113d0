"""The job "download": download, convert or copy a base model, as `models get` does. Stopped, it keeps partial files and resumes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from finetune_local.models.download import get
from finetune_local.models.hub.http_file import Transfer
from finetune_local.runtime.kinds import JobKind, Reporter
from finetune_local.system.paths import Home

_EVERY = 0.5
_SLICE = 0.2


def run(arguments: Mapping[str, Any], home: Home, report: Reporter) -> Mapping[str, Any]:
    """`arguments`: what (a name, ORG/NAME, a file or a folder), and optionally name and revision.

    They are stored on disk, so the token is never among them; it comes from the environment or the keyring. Progress facts are those
    of a Transfer.
    """
    newest: dict[str, Any] = {}
    phase_before, reported_at = "", 0.0

    def transfer(now: Transfer) -> None:
        newest.update(asdict(now))

    def progress(text: str, done: float | None) -> None:
        nonlocal phase_before, reported_at
        # The numbers in the text are in the facts too; without them it changes once per file, and fewer lines are written.
        facts, phase = dict(newest), text.partition(": ")[0] if newest else text
        newest.clear()
        now = time.monotonic()
        if phase == phase_before and now - reported_at < _EVERY and done != 1.0:
            report.check()
            return
        phase_before, reported_at = phase, now
        report(phase, done, **facts)

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            report.check()
            time.sleep(min(_SLICE, left))

    given = {key: arguments[key] for key in ("name", "revision") if arguments.get(key)}
    model = get(str(arguments["what"]), home, progress, transfer=transfer, pause=pause, **given)
    return {"name": model.name, "path": str(model.path), "parameters": model.parameters, "bytes": model.bytes_on_disk}


KIND = JobKind("download", run, resumable=True, text_arguments=("what",))
