"""Exports as all windows see them: begun once, each under a name of its own, cleaned up after where a process was killed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.export.pipeline import clean, free_place
from finetune_local.runtime import job, once
from finetune_local.runtime.job import Job
from finetune_local.system import preferences
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.paths import Home, expanded

KIND = "export"


def folder_of(home: Home) -> Path:
    """Where exports go when no place is named: as preferred, else `exports` in the home folder."""
    preferred = preferences.load().exports
    return expanded(preferred) if preferred else home.root / "exports"


def begin(
    home: Home, adapter: str, model: str | None, target: str, quant: str, folder: str, name: str, *, gate: bool = True
) -> Job:
    """Export into a folder ("" for the usual one) under a free name; the job that does so already where there is one.

    `name` is what offers() calls the source. Raises SpecError where the folder cannot be written, ModelError.
    """
    place = _writable(expanded(folder) if folder.strip() else folder_of(home))
    for known in job.every(home, KIND):
        if known.status() == "interrupted":
            clean(_out(known))
    out = free_place(place, target, name, quant)
    wanted = {"adapter": adapter, "model": model, "target": target, "format": quant, "out": str(out), "gate": gate}
    return once.begin(home, KIND, wanted, _same)


def forget(home: Home, name: str) -> None:
    """Take an export off the list; the files of a finished one stay. Raises SpecError while it works."""
    found = job.find(home, name)
    killed = found.status() == "interrupted"
    out = _out(found) if killed else None
    job.forget(found)
    if out is not None:
        clean(out)


def places(home: Home) -> list[Path]:
    """The folders that exports went to: what may be opened from the window."""
    return [_out(known).parent for known in job.every(home, KIND)]


def _out(known: Job) -> Path:
    return Path(str(known.arguments["out"]))


def _same(arguments: Mapping[str, Any]) -> object:
    """What makes two the same: all but the name, which counts up."""
    return [arguments.get(key) for key in ("adapter", "model", "target", "format")], Path(arguments["out"]).parent


def _writable(folder: Path) -> Path:
    if not folder.is_absolute():
        raise SpecError(
            msg("the folder '{folder}' is not a whole path. Give it from the drive or / on.", folder=folder)
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            msg("{path} cannot be made ({error}). Choose another folder.", path=folder, error=system_reason(error))
        ) from None
    if not os.access(folder, os.W_OK):
        raise SpecError(msg("{path} cannot be written. Choose another folder, or change its permissions.", path=folder))
    return folder
