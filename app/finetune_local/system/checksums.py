"""SHA-256 of every file in a folder, in `SHA256SUMS`, so that corruption on disk is detected.

The format is `sha256sum`'s: `cd FOLDER && sha256sum -c SHA256SUMS` checks it without this app. Unlisted files, such as a user's
note, are ignored. Folders of older versions have no such file and are read without checks.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetune_local.system.files import ASIDE, write_text
from finetune_local.system.messages import Message, message_of, msg, system_reason
from finetune_local.system.untrusted.text import ForeignTextError, read_bounded

SUMS = "SHA256SUMS"

Known = Mapping[str, Collection[str]]
"""The digests each file may have: one, or briefly two while a file is being replaced."""

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_ODD = re.compile(r"[\\\n\r]")  # sha256sum escapes such names
_MOST_BYTES = 2**20
_THREADS = min(4, os.cpu_count() or 1)


def write(folder: Path, given: Mapping[str, str] | None = None, leave_out: Collection[str] = ()) -> None:
    """Write SHA256SUMS for all files of a folder and its subfolders, except those the user edits. `given` are digests of files that
    will be added.

    Call it last, before the folder gets its final name.
    """
    names = [name for name in _files(folder) if name not in leave_out]
    found = {**digests(folder, names), **(given or {})}
    write_text(folder / SUMS, _text({name: {digest} for name, digest in found.items()}))


def read(folder: Path) -> Known | None:
    """The digests in SHA256SUMS; None if there is no such file. Raises ForeignTextError if it is damaged."""
    try:
        text = read_bounded(folder / SUMS, _MOST_BYTES).decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ForeignTextError(msg("{file} cannot be read ({error})", file=SUMS, error=error)) from None
    known: dict[str, set[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts:
            raise ForeignTextError(msg("{sums} is damaged in line {number}", sums=SUMS, number=number))
        known.setdefault(match[2], set()).add(match[1])
    if not known:
        raise ForeignTextError(msg("{sums} is empty", sums=SUMS))
    return known


def problem(folder: Path, needed: Iterable[str] = ()) -> Message | None:
    """What is wrong with a folder's files, as the end of a sentence; None if nothing is or there are no checksums.

    `needed` are files whose absence from the list means it was truncated.
    """
    try:
        known = read(folder)
    except ForeignTextError as error:
        return message_of(error)
    if known is None:
        return None
    for name in [*needed, *known]:
        if name not in known:
            return msg("{sums} has no line for {name}", sums=SUMS, name=name)
        if not (folder / name).is_file():
            return msg("{name} is missing", name=name)
    return changed(folder, known)


def changed(folder: Path, known: Known) -> Message | None:
    """The first existing file that differs from `known`, as the end of a sentence."""
    try:
        found = digests(folder, [name for name in known if (folder / name).is_file()])
    except OSError as error:
        return msg("{file} cannot be read ({error})", file=error.filename or folder, error=system_reason(error))
    wrong = next((name for name, digest in found.items() if digest not in known[name]), None)
    return (
        None
        if wrong is None
        else msg("{name} has changed since it was written: it does not match its checksum", name=wrong)
    )


def rewrite(folder: Path, name: str, text: str) -> None:
    """Replace a text file and its checksum, if the folder has them; interrupted at any moment, the two still match."""
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    try:
        known = read(folder)
    except ForeignTextError:
        known = None  # damaged before: rewriting must not hide it
    if known is None or name not in known:
        write_text(folder / name, text)
        return
    write_text(folder / SUMS, _text({**known, name: {*known[name], digest}}))
    write_text(folder / name, text)
    write_text(folder / SUMS, _text({**known, name: {digest}}))


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of several files in parallel; about a second per gigabyte. Raises OSError."""
    listed = list(names)
    if len(listed) < 2 or _total(folder, listed) < 2**22:  # for small files threads cost more than they save
        return {name: _digest(folder / name) for name in listed}
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(listed, threads.map(lambda name: _digest(folder / name), listed), strict=True))


def _text(known: Known) -> str:
    return "".join(f"{digest}  {name}\n" for name in sorted(known) for digest in sorted(known[name]))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _total(folder: Path, names: Iterable[str]) -> int:
    return sum((folder / name).stat().st_size for name in names)


def _files(folder: Path) -> list[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(ASIDE))
    names = [path.relative_to(folder).as_posix() for path in found]
    return [name for name in names if name != SUMS and not _ODD.search(name)]
