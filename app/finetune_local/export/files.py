"""Where an export may be written: checks free space, and never replaces the user's own files by mistake."""

from __future__ import annotations

import os
from pathlib import Path

from finetune_local.export.targets import Target
from finetune_local.system.errors import DiskFull, ModelError
from finetune_local.system.files import free_bytes
from finetune_local.system.messages import msg, system_reason

ADVICE = msg("No partial files were left. Free some space, or choose an --out on another disk.")
_SPARE = 32 * 2**20


def check_room(out: Path, size: int) -> None:
    """Raise DiskFull if the disk of `out` has less than `size` bytes plus a margin."""
    free = free_bytes(out)
    if free < size + _SPARE:
        raise DiskFull(
            msg(
                "the export needs {size} but the disk of {path} has {free} free. Free some space, or choose an --out "
                "on another disk.",
                size=_megabytes(size),
                path=out,
                free=_megabytes(free),
            )
        )


def check_writable(out: Path) -> None:
    """Create the folder for an export. Raises ModelError if it cannot be created or written."""
    folder = out.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(
            msg(
                "--out {out}: {folder} cannot be created ({error}). Choose another location.",
                out=out,
                folder=folder,
                error=system_reason(error),
            )
        ) from None
    if not os.access(folder, os.W_OK):
        raise ModelError(
            msg(
                "--out {out}: {folder} cannot be written. Choose another location, or change its permissions.",
                out=out,
                folder=folder,
            )
        )


def check_out(out: Path, target: Target, quant: str, overwrite: bool, sources: list[Path]) -> None:
    """Refuse an --out that must not be replaced. Raises ModelError.

    `sources` are folders the export reads: never replaced or written into. A folder is replaced only if it is an export of the same
    target without subfolders, so that a typing mistake in --out cannot delete documents.
    """
    folder = target.is_folder(quant)
    for source in sources:
        if out.resolve() == source.resolve() or (folder and out.resolve() in source.resolve().parents):
            raise ModelError(
                msg("--out {out}: the export would overwrite its own source. Choose another location.", out=out)
            )
    if out.is_dir() and not folder:
        raise ModelError(msg("--out {out}: this is a folder, but the export is one file. Choose a file name.", out=out))
    if out.is_file() and folder:
        raise ModelError(msg("--out {out}: this is a file, but the export is a folder. Choose another name.", out=out))
    if not out.exists() or (folder and not any(out.iterdir())):
        return
    if not overwrite:
        raise ModelError(
            msg("--out {out}: it already exists. Choose another location, or replace it with --overwrite.", out=out)
        )
    if folder and not ((out / target.mark).is_file() and all(p.is_file() for p in out.iterdir())):
        raise ModelError(
            msg(
                "--out {out}: this is not {what}, so it is not replaced. Choose another location.",
                out=out,
                what=target.folder_title,
            )
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
