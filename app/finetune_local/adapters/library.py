"""The adapters on this machine: those of runs (runs/NAME/adapter) and those brought in by hand (adapters/NAME)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.adapters.identity import AdapterIdentity, read_identity
from finetune_local.errors import AdapterError, typed
from finetune_local.layout import CONFIG, WEIGHTS, read_config
from finetune_local.paths import Home
from finetune_local.spec.fields import did_you_mean

NOTE = "note.txt"


@dataclass(frozen=True)
class Entry:
    """One adapter: what it is called here, its folder, and whether a run made it here or it was imported."""

    name: str
    folder: Path
    origin: str  # "run" or "imported"

    @property
    def identity(self) -> AdapterIdentity | None:
        """See read_identity."""
        return read_identity(self.folder)

    @property
    def bytes_on_disk(self) -> int:
        """Size of the files in its folder."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    @property
    def note(self) -> str:
        """What the user wrote about it."""
        path = self.folder / NOTE
        return path.read_text("utf-8").strip() if path.is_file() else ""

    def describe(self) -> dict[str, Any]:
        """A plain object for lists: name, base, method, rank, size, date, note. Raises AdapterError."""
        identity, config = self.identity, read_config(self.folder)
        return {
            "name": self.name,
            "origin": self.origin,
            "folder": str(self.folder),
            "base": identity.base.name if identity else config.get("base_model_name_or_path"),
            "method": identity.method if identity else str(config.get("peft_type", "")).lower(),
            "rank": config.get("r"),
            "run": identity.run if identity else None,
            "created": identity.created if identity else None,
            "bytes": self.bytes_on_disk,
            "note": self.note,
        }


def entries(home: Home) -> Iterator[Entry]:
    """Every adapter, runs first, each group by name."""
    for folder in sorted(home.runs.iterdir()):
        if not folder.name.startswith(".") and is_adapter(folder / "adapter"):
            yield Entry(folder.name, folder / "adapter", "run")
    for folder in sorted(home.adapters.iterdir()):
        if not folder.name.startswith(".") and is_adapter(folder):  # a dot: an import that was killed
            yield Entry(folder.name, folder, "imported")


def is_adapter(folder: Path) -> bool:
    """Whether PEFT's two files are there."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def entry(name: str, home: Home) -> Entry:
    """The library's adapter called `name`. Raises AdapterError naming near ones."""
    known = {found.name: found for found in entries(home)}  # an imported one wins: import refuses a run's name
    if name not in known:
        hint = did_you_mean(name, list(known))
        listed = f" Known: {', '.join(known)}." if known and not hint else ""
        raise AdapterError(
            f"there is no adapter '{name}'.{hint}{listed} `finetune-local adapters list` shows them; "
            "a folder's path can be given too."
        )
    return known[name]


def find(name_or_path: str | Path, home: Home) -> Path:
    """The folder of an adapter given as a path, a run's folder, a run's name, or a library name. Raises AdapterError."""
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        for folder in (path, path / "adapter"):
            if (folder / CONFIG).is_file():
                return folder.resolve()
    if set(str(name_or_path)) & set("/\\"):
        what = f"there is no {CONFIG} in it" if path.is_dir() else "there is no such folder"
        raise AdapterError(
            f"--adapter {name_or_path}: {what}. Give an adapter's folder, a run's name or a library name."
        )
    unfinished = home.runs / str(name_or_path)
    if unfinished.is_dir() and not is_adapter(unfinished / "adapter"):
        raise AdapterError(
            f"run '{name_or_path}' has no adapter yet: it did not finish. `finetune-local resume {typed(str(name_or_path))}` goes on."
        )
    return entry(str(name_or_path), home).folder.resolve()


def run_folder(adapter: Path) -> Path | None:
    """The run that an adapter folder (NAME/adapter) or a checkpoint (NAME/checkpoints/step-000100) lies in."""
    return next((p for p in (adapter.parent, adapter.parent.parent) if (p / "run.json").is_file()), None)


def run_tables(adapter: Path) -> dict[str, Any]:
    """run.json of the run that an adapter lies in; empty for others. Raises AdapterError."""
    run = run_folder(adapter)
    if run is None:
        return {}
    try:
        values = json.loads((run / "run.json").read_text("utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterError(f"{run / 'run.json'}: cannot be read ({error}). Copy the file again.") from None
    return values if isinstance(values, dict) else {}


def rope_factor_of(folder: Path) -> float:
    """What the positions of an adapter's base are stretched by."""
    identity = read_identity(folder)
    return identity.base.rope_factor if identity else 1.0


def base_of(folder: Path) -> str | None:
    """The base an adapter was made on, as `--model` takes it: the run's own words first, else the recorded name."""
    chosen = run_tables(folder).get("model", {}).get("id")
    if not chosen and (identity := read_identity(folder)):
        chosen = identity.base.name
    chosen = chosen or read_config(folder).get("base_model_name_or_path")
    return str(chosen) if chosen else None
