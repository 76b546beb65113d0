"""Folders that appear whole or not at all: written aside, fsynced, renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from finetune_local.errors import DiskFull

ASIDE = ".writing-"
"""Prefix of a folder that is not finished; one found later is rubbish from a killed process."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Make `target` by `write(folder)`, replacing what stood there. Raises DiskFull, leaving what stood there."""
    aside = target.with_name(ASIDE + target.name)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        for file in sorted(aside.rglob("*")):
            _sync(file)
        _sync(aside)
        old = None
        if target.exists():
            old = target.with_name(ASIDE + "old-" + target.name)
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        aside.rename(target)
        _sync(target.parent)
        if old is not None:
            shutil.rmtree(old)
    except (OSError, DiskFull) as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, DiskFull) or error.errno in _NO_SPACE:
            raise disk_full(target) from error
        raise


def write_text(target: Path, text: str) -> None:
    """Replace a text file in one step. Raises DiskFull, leaving the old text."""
    aside = target.with_name(ASIDE + target.name)
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        if error.errno in _NO_SPACE:
            raise disk_full(target) from error
        raise


def is_no_space(error: OSError) -> bool:
    """Whether an OSError says that the disk (or a quota) is full."""
    return error.errno in _NO_SPACE


def disk_full(target: Path) -> DiskFull:
    """The error for a full disk, with how much room there is."""
    free = shutil.disk_usage(target.parent if target.parent.exists() else Path.cwd()).free
    return DiskFull(
        f"the disk is full ({free / 1e6:.0f} MB free): {target} could not be written. "
        "What was saved before is intact. Make room, or move the home folder with --home, then resume."
    )


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; put back a folder whose replacement never came."""
    for rubbish in folder.glob(ASIDE + "*"):
        kept = folder / rubbish.name.removeprefix(ASIDE + "old-")
        if rubbish.name.startswith(ASIDE + "old-") and not kept.exists():
            rubbish.rename(kept)
        elif rubbish.is_dir():
            shutil.rmtree(rubbish, ignore_errors=True)
        else:
            rubbish.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no fsync of folders; renames there are journalled
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
