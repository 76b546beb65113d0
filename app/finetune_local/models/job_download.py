"""Download, convert or copy a base model: what `models get` does. Stopped it keeps what has come, and goes on from there."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from finetune_local.models.download import get
from finetune_local.models.hub.http_file import Transfer
from finetune_local.runtime.kinds import Tell
from finetune_local.system.paths import Home

_EVERY = 0.5
_SLICE = 0.2


def run(arguments: Mapping[str, Any], home: Home, tell: Tell) -> dict[str, Any]:
    """`arguments`: what (a name, ORG/NAME, a file or a folder), name and revision where they are given.

    The token is never among them, as they are kept on disk: it comes from the environment or the keyring. The facts told are
    those of a Transfer.
    """
    newest: dict[str, Any] = {}
    phase_before, told_at = "", 0.0

    def transfer(now: Transfer) -> None:
        newest.update(asdict(now))

    def progress(text: str, done: float | None) -> None:
        nonlocal phase_before, told_at
        # The text's numbers are in the facts; without them it changes with the file only, and fewer lines are written.
        facts, phase = dict(newest), text.partition(": ")[0] if newest else text
        newest.clear()
        now = time.monotonic()
        if phase == phase_before and now - told_at < _EVERY and done != 1.0:
            tell.check()
            return
        phase_before, told_at = phase, now
        tell(phase, done, **facts)

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            tell.check()
            time.sleep(min(_SLICE, left))

    given = {key: arguments[key] for key in ("name", "revision") if arguments.get(key)}
    model = get(str(arguments["what"]), home, progress, transfer=transfer, pause=pause, **given)
    return {"name": model.name, "path": str(model.path), "parameters": model.parameters, "bytes": model.bytes_on_disk}
