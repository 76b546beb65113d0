"""Files dropped into the window: stored in the home folder under their own names without replacing each other."""

from __future__ import annotations

import errno
import filecmp
import os
import re
import shutil
import unicodedata
from pathlib import Path

from finetune_local.system.files import disk_full, put, written_aside
from finetune_local.system.messages import msg
from finetune_local.system.paths import bad_name

ADVICE = msg("Free some space, or enter the file's path: it is then read in place.")
LONGEST = 80
"""Characters of a file name, suffix included."""

MOST_READ = 1000
"""Characters of a given name that are used; its suffix is among the last ones."""

_OUTSIDE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP)


def keep(source: Path, folder: Path, name: str) -> Path:
    """Move a file into a folder under a sanitised name; an identical file already there is used instead.

    A different file of that name stays, and this one gets a number. Raises DiskFull.
    """
    target, there = _place(source, folder, name)
    if there:
        source.unlink(missing_ok=True)
        return target
    with disk_full(target, ADVICE):
        try:
            put(source, target)  # the place was reserved
        except OSError as error:
            if error.errno not in _OUTSIDE:
                raise
            _copy(source, target)
            source.unlink(missing_ok=True)
    return target


def keep_copy(source: Path, folder: Path, name: str) -> Path:
    """As keep(), leaving the source in place. Raises DiskFull."""
    target, there = _place(source, folder, name)
    if not there:
        _copy(source, target)
    return target


def harmless(name: str) -> str:
    """A file name that is valid on every system: no folders, control characters, or bidirectional marks."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name[-MOST_READ:]))[-1]
    shown = "".join(
        "_" if c in '<>:"|?*' else c for c in last if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co")
    )
    stem, dot, ending = shown.strip().rstrip(" .").rpartition(".")
    if not dot:
        stem, ending = ending, ""
    ending = ending.strip()[:16]
    stem = stem.strip(" .-") or "data"
    while len(f"{stem}.{ending}".encode()) > 180 or len(stem) + len(ending) + 1 > LONGEST:
        stem = stem[:-1]
    made = f"{stem.rstrip(' .')}.{ending}" if ending else stem.rstrip(" .")
    return f"data {made}" if bad_name(made) else made


def _place(source: Path, folder: Path, name: str) -> tuple[Path, bool]:
    """A free path, reserved by an empty file, or the path of an identical file."""
    clean = Path(harmless(name))
    number = 1
    while True:
        target = folder / (clean.name if number == 1 else f"{clean.stem} ({number}){clean.suffix}")
        try:
            with disk_full(target, ADVICE):
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            return target, False
        except FileExistsError:
            if target.is_file() and filecmp.cmp(source, target, shallow=False):
                return target, True
            number += 1


def _copy(source: Path, target: Path) -> None:
    try:
        with written_aside(target, ADVICE) as aside:
            shutil.copyfile(source, aside)
    except BaseException:
        target.unlink(missing_ok=True)  # only the empty placeholder file
        raise
