"""Atomic files and folders: written beside the target, fsynced, renamed. And sentences for disk errors."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from finetune_local.system.errors import DiskFailed, DiskFull
from finetune_local.system.messages import Message, msg

FREE_SPACE = msg("Free some space on it.")

ASIDE = ".writing-"
"""Prefix of unfinished files; one found later was left by a killed process."""

_OLD = ASIDE + "old-"
_ABANDONED_SECONDS = 3600
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_RUST = re.compile(r"os error (\d+)\b")
_WINDOWS_FULL = 112
_CANNOT_EXCHANGE = (
    errno.ENOSYS,
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
)  # an old system, or a disk without this feature
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)

_FAILING = (msg("the disk reports an error and may be failing"), msg("Copy what you need from it to another disk."))
_GONE = (
    msg("the disk is not available: it was unplugged, or a network drive does not respond"),
    msg("Connect it again."),
)
_REFUSED = (
    msg("the current user has no permission to do that there"),
    msg("Change its permissions, or close the program that uses it."),
)
_HELD = (msg("another program is using it"), msg("Close that program."))
_FILES = (msg("too many files are open"), msg("Close other programs, or allow more files (ulimit -n)."))
_MEMORY = (msg("the system is out of memory"), msg("Close other programs."))
_OTHER_KIND = (msg("a file or folder of another kind has its name"), msg("Move it away."))
_REASONS = {
    "EIO": _FAILING,
    "EREMOTEIO": _FAILING,
    "EUCLEAN": _FAILING,
    "EROFS": (msg("the disk is read-only"), msg("Make it writable, or choose another location.")),
    "EACCES": _REFUSED,
    "EPERM": _REFUSED,
    "EMFILE": _FILES,
    "ENFILE": _FILES,
    "ENAMETOOLONG": (msg("its name is too long for this disk"), msg("Choose a shorter one.")),
    "EILSEQ": (msg("this disk does not allow this name"), msg("Choose another one.")),
    "ENOMEM": _MEMORY,
    "ENOBUFS": _MEMORY,
    "EBUSY": _HELD,
    "ETXTBSY": _HELD,
    "ELOOP": (msg("its links form a loop"), msg("Fix the links.")),
    "ENOTDIR": _OTHER_KIND,
    "EISDIR": _OTHER_KIND,
    "ENODEV": _GONE,
    "ENXIO": _GONE,
    "ENOMEDIUM": _GONE,
    "ESTALE": _GONE,
    "ENOTCONN": _GONE,
    "ESHUTDOWN": _GONE,
    "EHOSTDOWN": _GONE,
    "ENOLINK": _GONE,
    "ETIMEDOUT": _GONE,
}
"""System errors by name (not every system has each), in words, with advice. An error that is not listed is a bug."""

REASONS = {getattr(errno, name): words for name, words in _REASONS.items() if hasattr(errno, name)}


def is_no_space(error: BaseException) -> bool:
    """Whether an error says that a disk, a quota or a size limit is exhausted."""
    # numpy's tofile() reports a short write without a number.
    short_write = isinstance(error, OSError) and error.errno is None and bool(_SHORT_WRITE.search(str(error)))
    return short_write or number_of(error) in _NO_SPACE


def number_of(error: BaseException) -> int | None:
    """An error's errno, also if a library wrapped it."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ == "SafetensorError" and (match := _RUST.search(str(error))):
        number = int(match[1])
        return errno.ENOSPC if os.name == "nt" and number == _WINDOWS_FULL else number
    return None


def failure(error: BaseException, place: Path, advice: Message) -> DiskFailed | None:
    """The error for a disk failure at `place`, or at the file it names; None if it is not a disk failure."""
    if is_no_space(error):
        return DiskFull(
            msg(
                "no space is left to write {path} ({room} on its disk). {advice}",
                path=place,
                room=_free(place),
                advice=advice,
            )
        )
    number = number_of(error) or 0
    if number not in REASONS:
        return None
    reason, remedy = REASONS[number]
    named = Path(error.filename) if isinstance(error, OSError) and isinstance(error.filename, str) else place
    if named.name.startswith(".") and named.parent.is_dir() and not os.path.lexists(named):
        named = named.parent  # one of ours that could not be created: the folder's permissions matter
    return DiskFailed(
        msg(
            "{file} cannot be written or read: {reason}. {remedy} Everything saved earlier is intact.",
            file=named,
            reason=reason,
            remedy=remedy,
        )
    )


@contextmanager
def disk_full(place: Path, advice: Message) -> Iterator[None]:
    """Turn "no space left" into DiskFull and other disk failures into DiskFailed, with place, reason and `advice`."""
    try:
        yield
    except BaseException as error:
        sentence = failure(error, place, advice)
        if sentence is None:
            raise
        raise sentence from error


@contextmanager
def written_aside(target: Path, advice: Message) -> Iterator[Path]:
    """A temporary path beside `target` that replaces it when the block ends.

    On failure the old `target` stays and the new file is removed. Raises DiskFull with `advice`.
    """
    aside = target.with_name(ASIDE + target.name)
    try:
        with disk_full(target, advice):
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(aside)
            yield aside
            put(aside, target)
    except BaseException:
        with suppress(OSError):  # swept later; the reason matters more
            remove(aside)
        raise


def write_text(target: Path, text: str, advice: Message = FREE_SPACE) -> None:
    """Replace a text file atomically. Raises DiskFull, leaving the old text."""
    with written_aside(target, advice) as aside:
        aside.write_text(text, "utf-8")


def put(source: Path, target: Path) -> None:
    """Move a finished file or folder to its final name, replacing what is there; contents are synced before, the name after.

    Raises OSError, leaving the old one.
    """
    sync_tree(source)
    replace(source, target)
    sync(target.parent)


def replace(source: Path, target: Path) -> None:
    """Rename over whatever is at `target`; at any moment one of the two exists.

    Folders are exchanged atomically if the system can. Otherwise the old one is moved away first, and sweep() restores it after a
    power failure in between.
    """
    if target.is_symlink() or not (target.is_dir() or (source.is_dir() and target.exists())):
        source.replace(target)
    elif exchange(source, target):
        with suppress(OSError):  # the new one is in place; sweep() removes the rest of the old one
            remove(source)
    else:
        old = target.with_name(_OLD + target.name)
        remove(old)
        target.rename(old)
        source.replace(target)
        remove(old)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two files or folders atomically; False if the system or disk cannot. Raises OSError."""
    call, here, flag = _call()
    if call is None:
        return False
    if call(here, os.fsencode(one), here, os.fsencode(other), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


@cache
def _call() -> tuple[Any, int, int]:
    """The system's exchange call, its constant for the current folder, and its flag; None if there is no such call."""
    name, here, flag = {
        "linux": ("renameat2", -100, 2),
        "darwin": ("renameatx_np", -2, 2),
    }.get(sys.platform, ("", 0, 0))
    if not name:
        return None, 0, 0
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if call is not None:
        call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return call, here, flag


def remove(path: Path) -> None:
    """Delete a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Delete a folder so that it disappears at once and never partially; sweep() removes what a kill leaves behind."""
    gone = path.with_name(ASIDE + "gone-" + path.name)
    remove(gone)
    path.rename(gone)
    sync(path.parent)
    remove(gone)


def stamp(folder: Path, *names: str) -> tuple[tuple[int, int] | None, ...]:
    """Modification times and sizes of a folder's files, None for a missing one. If the stamp changes, read them again.

    Called for thousands of files, so it creates no Path per file.
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
    """Remove unfinished files of killed processes; restore a folder whose replacement never came."""
    for rubbish in folder.glob(ASIDE + "*"):
        kept = folder / rubbish.name.removeprefix(_OLD)
        if rubbish.name.startswith(_OLD) and not kept.exists():
            rubbish.rename(kept)
        else:
            remove(rubbish)


def sweep_abandoned(folder: Path) -> None:
    """Remove old unfinished files in a folder that running processes use too."""
    for rubbish in folder.glob(ASIDE + "*"):
        with suppress(OSError):  # another process may be renaming or removing it
            if time.time() - rubbish.stat().st_mtime > _ABANDONED_SECONDS:
                remove(rubbish)


def free_bytes(place: Path) -> int:
    """Free space on the disk of a path that need not exist yet. Raises OSError if there is no such disk."""
    place = place.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _free(place: Path) -> Message:
    try:
        return msg("{free_bytes} MB free", free_bytes=f"{free_bytes(place) / 1e6:.0f}")
    except OSError:  # removed in the meantime
        return msg("0 MB free")


def sync_tree(path: Path) -> None:
    """sync() a file, or a folder with everything in it."""
    for inner in sorted(path.rglob("*")) if path.is_dir() else ():
        if not inner.is_symlink():
            sync(inner)
    sync(path)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on disk. Raises OSError."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no fsync of folders; renames there are journalled
    folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        _flush(descriptor)
    except OSError as error:
        if not (folder and error.errno in _NO_SYNC):  # some network and USB drives cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def _flush(descriptor: int) -> None:
    """Flush to the medium: on macOS fsync leaves data in the drive's cache, which a power failure loses. Raises OSError."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # some drives do not support it
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)
