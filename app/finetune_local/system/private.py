"""What is the user's alone: the home folder 0700, and 0600 every file that is written into it.

Conversations, prepared rows and adapters are nobody else's business, and the usual umask (022) lets every user of a machine read them.
So the app's processes write with umask 077, a home is closed when it is made, and one that an older version left open is closed when it
is next used. What the user asked to be written elsewhere follows the umask that the user has set. Windows keeps a user's folders from
other users by itself: there is nothing to do.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetune_local.system.messages import msg

OTHERS = stat.S_IRWXG | stat.S_IRWXO
"""The bits of a mode that let others in."""

USER_UMASK = "FINETUNE_LOCAL_USER_UMASK"
"""Environment variable by which child processes know the umask that the user has set; octal."""

_FOREIGN_BUT_HARMLESS = frozenset({"lost+found", ".DS_Store", "preferences.json"})
"""What may lie in a home without being the app's."""

say: list[Callable[[str], None]] = []
"""Where a sentence for the user goes; the command line sets it."""

_looked_at: set[Path] = set()
"""Homes that this process has tried to close: it tries once."""


def write_privately() -> None:
    """From now on this process and its children write for the user alone."""
    if os.name != "nt":
        before = os.umask(OTHERS)
        os.environ.setdefault(USER_UMASK, f"{before:o}")


@contextmanager
def writing_privately() -> Iterator[None]:
    """The same for a while: what calls the command line as a function goes on with its own umask."""
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
    """The user's own umask, as subprocess.Popen(umask=...) takes it: -1 where this process has no other one."""
    try:
        return int(os.environ.get(USER_UMASK, "-1"), 8) & 0o777 if os.environ.get(USER_UMASK) else -1
    except ValueError:
        return -1


def share(path: Path, home: Path | None = None) -> None:
    """Give what the user asked to be written at `path` the rights that the user's umask gives; not where it lies in the home."""
    umask = user_umask()
    if umask < 0 or (home is not None and path.resolve().is_relative_to(home.resolve())):
        return
    for found in (path, *(path.rglob("*") if path.is_dir() else ())):
        with suppress(OSError):
            known = found.lstat().st_mode
            if stat.S_ISDIR(known) or stat.S_ISREG(known):
                found.chmod((0o777 if stat.S_ISDIR(known) else 0o666) & ~umask | stat.S_IMODE(known) & 0o7700)


def make_private(root: Path, part: Path, parts: Iterable[str]) -> None:
    """Make a home and a part of it, and close them. `parts` are the names of all parts. Raises OSError where they cannot be made."""
    if not part.is_dir():
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(0o700, exist_ok=True)
        part.mkdir(0o700, parents=True, exist_ok=True)
    _close_once(root, parts)


def open_to_others(root: Path, parts: Iterable[str]) -> list[Path]:
    """The folders of a home that another user may enter though they should be closed; none where the home itself is closed."""
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
    """A home from before, or in a folder of the user's: everything where it holds nothing else, otherwise the parts alone."""
    names = {entry.name for entry in root.iterdir()}
    whole = names <= parts | _FOREIGN_BUT_HARMLESS and _may_be_closed(root)
    had = any((root / name).is_dir() for name in parts & names)
    for place in (root,) if whole else sorted(root / name for name in parts & names):
        if _close_one(place):
            for folder, folders, files in os.walk(place):
                for name in (*folders, *files):
                    _close_one(Path(folder, name))
    if had and whole and not _is_open(root):
        _tell(msg("{root} could be read by other users of this machine. From now on only you can.", root=root))
    elif had and not whole and not open_to_others(root, parts):
        _tell(
            msg(
                "{root} has the app's folders beside others: those of the app can be read by you alone from now on.",
                root=root,
            )
        )


def _may_be_closed(root: Path) -> bool:
    """Not a folder that many use (/tmp), nor another user's, nor where a user's whole things are."""
    known = root.stat()
    return not known.st_mode & stat.S_ISVTX and known.st_uid == os.geteuid() and root != Path.home()


def _close_one(place: Path) -> bool:
    """Take the others' rights away; False where that does nothing. What a link leads to is left alone."""
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


def _tell(text: str) -> None:
    for hear in say:
        hear(text)
