"""Privacy on disk: the home folder has mode 0700, and every file written into it 0600.

Conversations, data and adapters are private, and the usual umask (022) lets every user of a machine read them. So the app's
processes write with umask 077, a new home is created closed, and one left open by an older version is closed on next use. Output
the user requests elsewhere follows the user's umask. On Windows user folders are private already.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_local.system.messages import msg

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""Permission bits of group and others."""

USER_UMASK = "FINETUNE_LOCAL_USER_UMASK"
"""Environment variable that carries the user's umask to child processes, in octal."""

_FOREIGN_BUT_HARMLESS = frozenset({"lost+found", ".DS_Store", "preferences.json"})
"""Entries of a home that do not belong to the app."""

say: list[Callable[[str], None]] = []
"""The function that shows sentences to the user; set by the command line."""

_looked_at: set[Path] = set()
"""Homes this process has already tried to close; it tries once."""


def write_privately() -> None:
    """From now on this process and its children write with umask 077."""
    if os.name != "nt":
        before = os.umask(OTHERS)
        os.environ.setdefault(USER_UMASK, f"{before:o}")


@contextmanager
def writing_privately() -> Iterator[None]:
    """The same within a block, for callers that run the command line as a function."""
    if os.name == "nt":
        yield
        return
    known = os.environ.get(USER_UMASK)
    before = os.umask(OTHERS)
    os.environ.setdefault(USER_UMASK, f"{before:o}")
    try:
        yield
    finally:
        os.umask(before)
        if known is None:
            os.environ.pop(USER_UMASK, None)


def user_umask() -> int:
    """The user's umask as subprocess.Popen(umask=...) takes it: -1 if this process has no other."""
    try:
        return int(os.environ.get(USER_UMASK, "-1"), 8) & 0o777 if os.environ.get(USER_UMASK) else -1
    except ValueError:
        return -1


def share(path: Path, home: Path | None = None) -> None:
    """Give output at `path` the permissions of the user's umask, unless it is inside the home."""
    umask = user_umask()
    if umask < 0 or (home is not None and path.resolve().is_relative_to(home.resolve())):
        return
    for found in (path, *(path.rglob("*") if path.is_dir() else ())):
        with suppress(OSError):
            known = found.lstat().st_mode
            if stat.S_ISDIR(known) or stat.S_ISREG(known):
                found.chmod((0o777 if stat.S_ISDIR(known) else 0o666) & ~umask | stat.S_IMODE(known) & 0o7700)


def make_private(root: Path, part: Path, parts: Iterable[str]) -> None:
    """Create a home and a subfolder, and close them. `parts` are all subfolder names. Raises OSError."""
    if not part.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(0o700, exist_ok=True)
        part.mkdir(0o700, parents=True, exist_ok=True)
    _close_once(root, parts)


def open_to_others(root: Path, parts: Iterable[str]) -> list[Path]:
    """A home's subfolders that other users can enter; none if the home itself is closed."""
    if root.is_dir():
        _close_once(root, parts)
    if os.name == "nt" or not _is_open(root):
        return []
    return [place for name in parts if _is_open(place := root / name)]


def _close_once(root: Path, parts: Iterable[str]) -> None:
    if os.name != "nt" and root not in _looked_at:
        _looked_at.add(root)
        if _is_open(root):
            _close(root, frozenset(parts))


def _close(root: Path, parts: frozenset[str]) -> None:
    """Close an existing home: all of it if nothing else is inside, otherwise only the subfolders."""
    names = {entry.name for entry in root.iterdir()}
    whole = names <= parts | _FOREIGN_BUT_HARMLESS and _may_be_closed(root)
    had = any((root / name).is_dir() for name in parts & names)
    for place in (root,) if whole else sorted(root / name for name in parts & names):
        if _close_one(place):
            for folder, folders, files in os.walk(place):
                for name in (*folders, *files):
                    _close_one(Path(folder, name))
    if had and whole and not _is_open(root):
        _show(msg("{root} was readable by other users of this machine. From now on, only you can read it.", root=root))
    elif had and not whole and not open_to_others(root, parts):
        _show(
            msg(
                "{root} contains other folders beside the app's. From now on, only you can read the app's folders.",
                root=root,
            )
        )


def _may_be_closed(root: Path) -> bool:
    """False for shared folders (/tmp), other users' folders, and a user's whole home directory."""
    known = root.stat()
    return not known.st_mode & stat.S_ISVTX and known.st_uid == os.geteuid() and root != Path.home()


def _close_one(place: Path) -> bool:
    """Remove others' permissions; False if that has no effect. Link targets are left alone."""
    with suppress(OSError):
        known = place.lstat()
        if not stat.S_ISLNK(known.st_mode) and known.st_mode & OTHERS:
            place.chmod(stat.S_IMODE(known.st_mode) & ~OTHERS)
        return not place.lstat().st_mode & OTHERS
    return False


def _is_open(place: Path) -> bool:
    try:
        return bool(place.stat().st_mode & OTHERS)
    except OSError:
        return False


def _show(text: str) -> None:
    for hear in say:
        hear(text)
