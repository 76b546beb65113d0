"""Job kind: what `export` does, and the exports of all windows. Each is started once, under a free name.

A stopped or failed export leaves nothing half-written; what a killed one left is removed before the next starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.export.pipeline import clean, export_named, free_place
from finetune_local.runtime import jobs
from finetune_local.runtime.job import Job
from finetune_local.runtime.kinds import JobKind, Reporter
from finetune_local.system import preferences
from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.paths import Home, expanded


def run(arguments: Mapping[str, Any], home: Home, report: Reporter) -> Mapping[str, Any]:
    """`arguments`: adapter, target, format (None: the target's first), out, model, backend, gate, skip.

    The result is what `export --json` prints. Raises what exporting raises.
    """
    report(msg("starting"))
    done = export_named(
        home,
        str(arguments["adapter"]),
        str(arguments["target"]),
        arguments.get("format"),
        Path(arguments["out"]),
        model=arguments.get("model"),
        backend=str(arguments.get("backend") or "auto"),
        verification=bool(arguments.get("gate", True)),
        skip=tuple(str(name) for name in arguments.get("skip") or ()),
        progress=report,
    )
    return done.as_json()


def out_of(arguments: Mapping[str, Any]) -> Path:
    """The folder or file that an export writes."""
    return Path(str(arguments["out"]))


def _identity(arguments: Mapping[str, Any]) -> object:
    """All arguments but the export's name, which has a number if the usual one was taken."""
    return [arguments.get(key) for key in ("adapter", "model", "target", "format")], out_of(arguments).parent


KIND = JobKind(
    "export",
    run,
    text_arguments=("out",),
    identity=_identity,
    clean_up=lambda arguments: clean(out_of(arguments)),
)


def folder_of(home: Home) -> Path:
    """The default folder for exports: the preferred one, else `exports` in the home folder."""
    preferred = preferences.load().exports
    return expanded(preferred) if preferred else home.root / "exports"


def start(
    home: Home,
    adapter: str,
    model: str | None,
    target: str,
    quant: str,
    folder: str,
    name: str,
    *,
    verification: bool = True,
) -> Job:
    """Export into a folder ("" for the default one) under a free name; returns the job that is already doing so, if there is one.

    `name` is Offers.name. Raises SpecError if the folder cannot be written, ModelError.
    """
    place = _writable(expanded(folder) if folder.strip() else folder_of(home))
    jobs.clean_up_killed(home, KIND)
    out = free_place(place, target, name, quant)
    arguments = {
        "adapter": adapter,
        "model": model,
        "target": target,
        "format": quant,
        "out": str(out),
        "gate": verification,
    }
    return jobs.start_once(home, KIND, arguments)


def remove(home: Home, name: str) -> None:
    """Remove an export from the list; the files of a finished one stay. Raises SpecError while it is running."""
    jobs.remove(jobs.find(home, name))


def places(home: Home) -> list[Path]:
    """The folders that exports were written to: these may be opened from the window."""
    return [out_of(known.arguments).parent for known in jobs.every(home, KIND)]


def _writable(folder: Path) -> Path:
    if not folder.is_absolute():
        raise SpecError(
            msg("the folder '{folder}' is not an absolute path. Start it with the drive or /.", folder=folder)
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(
            msg("{path} cannot be created ({error}). Choose another folder.", path=folder, error=system_reason(error))
        ) from None
    if not os.access(folder, os.W_OK):
        raise SpecError(msg("{path} cannot be written. Choose another folder, or change its permissions.", path=folder))
    return folder
