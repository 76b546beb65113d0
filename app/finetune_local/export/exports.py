"""Export jobs as all windows see them: started once, each under a free name, cleaned up if the process was killed."""

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
    """The default folder of exports: the preferred one, else `exports` in the home folder."""
    preferred = preferences.load().exports
    return expanded(preferred) if preferred else home.root / "exports"


def begin(
    home: Home, adapter: str, model: str | None, target: str, quant: str, folder: str, name: str, *, gate: bool = True
) -> Job:
    """Start an export into a folder ("" for the default one) under a free name; returns the existing job if the same export is running.

    `name` is the source's name from offers(). Raises SpecError if the folder is not writable, ModelError.
    """
    place = _writable(expanded(folder) if folder.strip() else folder_of(home))
    for known in job.every(home, KIND):
        if known.status() == "interrupted":
            clean(_out(known))
    out = free_place(place, target, name, quant)
    wanted = {"adapter": adapter, "model": model, "target": target, "format": quant, "out": str(out), "gate": gate}
    return once.begin(home, KIND, wanted, _same)


def forget(home: Home, name: str) -> None:
    """Remove an export job from the list; the files of a finished one stay. Raises SpecError while it is running."""
    found = job.find(home, name)
    killed = found.status() == "interrupted"
    out = _out(found) if killed else None
    job.forget(found)
    if out is not None:
        clean(out)


def places(home: Home) -> list[Path]:
    """The folders exports were written to: these may be opened from the window."""
    return [_out(known).parent for known in job.every(home, KIND)]


def _out(known: Job) -> Path:
    return Path(str(known.arguments["out"]))


def _same(arguments: Mapping[str, Any]) -> object:
    """What makes two exports equal: everything except the name, which has a counter."""
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
