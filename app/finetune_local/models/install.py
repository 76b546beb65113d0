"""Put a model into the home folder: built in a temporary folder, checked, renamed, so an incomplete folder never counts as a
model.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_local.models.folder import CONFIG, ModelFolder
from finetune_local.system.errors import DiskFailed, ModelError
from finetune_local.system.files import failure, sync, sync_tree
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.paths import bad_name
from finetune_local.system.untrusted.text import ForeignTextError, is_text, read_json_object

SOURCE = "finetune_local_source.json"
_ASIDE = ".making-"
_STALE_SECONDS = 24 * 3600
_LARGEST_NOTE = 2**20


def check_name(name: str) -> str:
    """The name, if it is a valid folder name on every system. Raises ModelError."""
    if reason := bad_name(name):
        raise ModelError(msg("--name {name} {reason}. Choose another.", name=repr(name), reason=reason))
    return name


def installed(models: Path) -> list[str]:
    """Names of the models in home.models, sorted."""
    return sorted(f.name for f in models.iterdir() if not f.name.startswith(".") and _is_model(f))


def _is_model(folder: Path) -> bool:
    try:
        return folder.is_dir() and (folder / CONFIG).exists()
    except OSError:  # one that cannot be looked into does not hide the others
        return False


def source_of(folder: Path) -> Mapping[str, str]:
    """Where an installed model came from ("from", "revision", ...), all strings; empty for a folder put there by hand, or if the
    record cannot be read.
    """
    try:
        found = read_json_object(folder / SOURCE, _LARGEST_NOTE) if (folder / SOURCE).is_file() else {}
    except (OSError, ForeignTextError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str) and is_text(value)}


@contextlib.contextmanager
def aside(models: Path) -> Iterator[Path]:
    """A temporary folder to build a model in, on the same disk as its destination; removed in any case."""
    for old in models.glob(_ASIDE + "*"):  # left by a process that was killed
        if time.time() - old.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=models))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(made: Path, models: Path, name: str, source: Mapping[str, Any]) -> ModelFolder:
    """Check a finished folder and rename it to its destination. Raises ModelError if the name is taken or a file is bad.

    If another process has installed the same model meanwhile, that one is kept.
    """
    ModelFolder.open(made, name)
    place = models / check_name(name)
    try:
        (made / SOURCE).write_text(json.dumps(source, indent=2, ensure_ascii=False) + "\n", "utf-8")
        sync_tree(made)
        made.rename(place)
        sync(models)
    except OSError as error:
        if place.is_dir() and source_of(place) == source:
            return ModelFolder.open(place, name)
        if place.exists():
            raise ModelError(
                msg("a model '{name}' already exists. Choose another --name, or remove it first.", name=name)
            ) from None
        problem = failure(error, place, msg("Free some space and try again."))
        raise problem or DiskFailed(
            msg("{path} could not be created: {error}.", path=place, error=os.strerror(error.errno or 0))
        ) from error
    return ModelFolder.open(place, name)


def remove(name: str, models: Path) -> None:
    """Delete an installed model. Raises ModelError for an unknown name, or if a program has its files open (Windows)."""
    known = installed(models)
    if name not in known:
        raise ModelError(
            msg(
                "'{name}' is not installed in {folder}. Installed: {names}.",
                name=name,
                folder=models,
                names=", ".join(known) or "none",
            )
        )
    with aside(models) as gone:
        try:
            (models / name).rename(gone / name)  # all of it or nothing
        except OSError as error:
            raise ModelError(
                msg(
                    "'{name}' cannot be removed ({error}). Close the chat or run that uses it, and try again.",
                    name=name,
                    error=system_reason(error),
                )
            ) from None
