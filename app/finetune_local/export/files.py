"""Writing an export whole or not at all: room is checked first, it is written aside, then renamed."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from finetune_local.errors import DiskFull, ModelError

ASIDE = ".writing"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # numpy's tofile() reports a short write without a number
_SPARE = 32 * 2**20


def check_room(out: Path, size: int) -> None:
    """Raise DiskFull where the disk of `out` has less than `size` bytes and a little more."""
    free = shutil.disk_usage(_existing(out)).free
    if free < size + _SPARE:
        raise DiskFull(
            f"the export needs {_megabytes(size)} but {_existing(out)} has {_megabytes(free)} free. "
            "Make room, or give --out on another disk."
        )


@contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A name beside `out` to write a file or folder at; renamed to `out` at the end, removed on any failure.

    Raises DiskFull where the disk fills up.
    """
    aside = out.with_name(out.name + ASIDE)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        remove(aside)
        yield aside
        replace(aside, out)
    except BaseException as error:
        remove(aside)
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise DiskFull(
                f"the disk of {out.parent} is full; nothing half-written was left. Make room, or give --out elsewhere."
            ) from error
        raise


def check_out(out: Path, folder: bool, overwrite: bool, sources: list[Path]) -> None:
    """Refuse an --out that stands in the way. Raises ModelError.

    `sources` are folders that are read from: never replaced, nor written into. A folder is only replaced where it is a
    model folder without sub-folders, so that a slip in --out cannot delete somebody's documents.
    """
    for source in sources:
        if out.resolve() == source.resolve() or (folder and out.resolve() in source.resolve().parents):
            raise ModelError(f"--out {out}: the export would replace what it is made from. Give another place.")
    if out.is_dir() and not folder:
        raise ModelError(f"--out {out}: this is a folder, but the export is one file. Give a file name.")
    if out.is_file() and folder:
        raise ModelError(f"--out {out}: this is a file, but the export is a folder. Give another name.")
    if not out.exists() or (folder and not any(out.iterdir())):
        return
    if not overwrite:
        raise ModelError(f"--out {out}: something is there already. Give another place, or --overwrite to replace it.")
    if folder and not ((out / "config.json").is_file() and all(p.is_file() for p in out.iterdir())):
        raise ModelError(f"--out {out}: this is not a model folder, so it is not replaced. Give another place.")


def replace(source: Path, out: Path) -> None:
    """Rename over whatever stands at `out`."""
    if source.is_dir() and out.exists():
        remove(out)
    source.replace(out)


def remove(path: Path) -> None:
    """Delete a file or folder that may not be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
