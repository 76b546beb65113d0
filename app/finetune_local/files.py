"""Files and folders that appear whole or not at all: written aside, fsynced, renamed. And one word for a full disk."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_local.errors import DiskFull

ASIDE = ".writing-"
"""Prefix of what is not finished; one found later is rubbish from a killed process."""

_OLD = ASIDE + "old-"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)


def is_no_space(error: BaseException) -> bool:
    """Whether an error says that the disk, a quota or a size limit is reached."""
    if isinstance(error, OSError):
        # numpy's tofile() reports a short write without a number.
        short_write = error.errno is None and bool(re.search(r"\d+ requested and \d+ written", str(error)))
        return error.errno in _NO_SPACE or short_write
    # safetensors wraps what the system said in an error of its own.
    return type(error).__name__ == "SafetensorError" and bool(re.search(r"os error (28|27|122|112)\b", str(error)))


@contextmanager
def disk_full(place: Path, advice: str) -> Iterator[None]:
    """Turn "no space left" into DiskFull, which says where, how much room there is, and `advice`."""
    try:
        yield
    except BaseException as error:
        if not is_no_space(error):
            raise
        raise DiskFull(f"no room is left to write {place} ({_free(place)} on its disk). {advice}") from error


@contextmanager
def written_aside(target: Path, advice: str) -> Iterator[Path]:
    """A name beside `target` to write a file or a folder at; it takes the target's place at the end.

    On any failure what stood at `target` stays and what was written is removed. Raises DiskFull with `advice`.
    """
    aside = target.with_name(ASIDE + target.name)
    try:
        with disk_full(target, advice):
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(aside)
            yield aside
            for file in sorted(aside.rglob("*")) if aside.is_dir() else ():
                _sync(file)
            _sync(aside)
            replace(aside, target)
            _sync(target.parent)
    except BaseException:
        remove(aside)
        raise


def write_text(target: Path, text: str, advice: str = "Make room on it.") -> None:
    """Replace a text file in one step. Raises DiskFull, leaving the old text."""
    with written_aside(target, advice) as aside:
        aside.write_text(text, "utf-8")


def replace(source: Path, target: Path) -> None:
    """Rename over whatever stands at `target`; a folder there is moved away first, so that one of the two always exists."""
    old = None
    if target.is_dir():
        old = target.with_name(_OLD + target.name)
        remove(old)
        target.rename(old)
    source.replace(target)
    if old is not None:
        remove(old)


def remove(path: Path) -> None:
    """Delete a file or folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stamp(folder: Path, *names: str) -> tuple[tuple[int, int] | None, ...]:
    """When files of a folder were changed and how long they are; None for one that is not there. Another stamp: read them again.

    Asked of thousands of files, so no Path is made for each.
    """
    found: list[tuple[int, int] | None] = []
    for name in names:
        try:
            known = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - see above
        except OSError:
            found.append(None)
        else:
            found.append((known.st_mtime_ns, known.st_size))
    return tuple(found)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; put back a folder whose replacement never came."""
    for rubbish in folder.glob(ASIDE + "*"):
        kept = folder / rubbish.name.removeprefix(_OLD)
        if rubbish.name.startswith(_OLD) and not kept.exists():
            rubbish.rename(kept)
        else:
            remove(rubbish)


def free_bytes(place: Path) -> int:
    """Room on the disk of a file or folder that need not exist yet. Raises OSError where there is no such disk."""
    place = place.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _free(place: Path) -> str:
    return f"{free_bytes(place) / 1e6:.0f} MB free"


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no fsync of folders; renames there are journalled
    folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in _NO_SYNC):  # some network and USB drives cannot sync a folder
            raise
    finally:
        os.close(descriptor)
