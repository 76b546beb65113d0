"""Copy an adapter's files out of an untrusted folder or zip: known names only, regular files only, within a size budget, following
no links. manage.py checks the copies afterwards; until then nothing of them is executed or trusted."""

from __future__ import annotations

import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from finetune_local.adapter_format import CONFIG, WEIGHTS
from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.adapters.library import NOTE
from finetune_local.adapters.mlx_lm import MLX_WEIGHTS
from finetune_local.spec.base.tokenizer_files import TRAVEL
from finetune_local.system import checksums
from finetune_local.system.errors import AdapterError
from finetune_local.system.messages import Message, message_of, msg, system_reason
from finetune_local.system.untrusted.text import ForeignTextError, open_file

_README = "README.md"
KEPT = (CONFIG, WEIGHTS, MLX_WEIGHTS, IDENTITY, NOTE, _README, *TRAVEL)
"""The files an import copies; everything else in the folder or zip is ignored."""

_TELLING = ("adapter_model.bin", "config.json")
_OPTIONAL = (NOTE, _README)
_MOST_BYTES = {
    CONFIG: 16 * 2**20,
    IDENTITY: 2**20,
    NOTE: 2**20,
    _README: 4 * 2**20,
    **dict.fromkeys(TRAVEL, 64 * 2**20),
}
"""Size limits in bytes; weights may be as large as the free space."""

_MOST_DIRECTORY = 4 * 2**20
"""Size limit of a zip's directory in bytes: about 40,000 entries."""

_MOST_RATIO, _RATIO_FROM = 50, 16 * 2**20
"""Weights barely compress. An entry above this size that unpacks to more than this ratio is a zip bomb."""

_BLOB = re.compile(r"\.\./\.\./blobs/([0-9a-f]{40,64})")
_CHUNK = 2**20

Note = Callable[[str], None]


def copy_folder(source: Path, target: Path, note: Note) -> None:
    """Copy an adapter's files out of a folder, or out of a run folder's adapter/. Raises AdapterError."""
    inner = source / "adapter"
    if not _there(source / CONFIG) and not inner.is_symlink() and _there(inner / CONFIG):
        source = inner  # a run's folder
    refuse_others({name for name in (*_TELLING, CONFIG, WEIGHTS, MLX_WEIGHTS) if _there(source / name)}, source)
    for name in KEPT:
        if not _there(source / name):
            continue
        try:
            with _opened_file(source / name) as file:
                size = os.fstat(file.fileno()).st_size
                if size > _MOST_BYTES.get(name, size):
                    raise ForeignTextError(
                        msg(
                            "it is larger than {size} MB, too large for such a file",
                            size=f"{_MOST_BYTES[name] / 1e6:.0f}",
                        )
                    )
                _copy(file, target / name, size)
        except ForeignTextError as error:
            if name not in _OPTIONAL:
                raise AdapterError(
                    msg("{path}: {error}. Replace it with the file itself.", path=source / name, error=error)
                ) from None
            note(msg("{file} is skipped: {why}.", file=name, why=error))
        except _Writing as error:
            raise error.args[0] from None
        except OSError as error:
            raise AdapterError(
                msg(
                    "{path}: {error}. Change its permissions, or copy it first.",
                    path=source / name,
                    error=system_reason(error),
                )
            ) from None
    if _there(source / checksums.SUMS) and (problem := _changed(source, target)):
        raise AdapterError(msg("{source}: {problem}. Copy the adapter again.", source=source, problem=problem))


def _changed(source: Path, target: Path) -> str | None:
    """Copied files that do not match the source's checksums. Files that were not copied are ignored."""
    try:
        return checksums.changed(target, checksums.read(source) or {})
    except ForeignTextError as error:
        return message_of(error)


def copy_zip(source: Path, target: Path, note: Note) -> None:
    """Unpack an adapter's files out of a zip. Raises AdapterError."""
    with _opened_zip(source) as archive:
        members = [PurePosixPath(info.filename.replace("\\", "/")) for info in archive.infolist()]
        for member in members:
            if member.is_absolute() or ".." in member.parts or ":" in "".join(member.parts[:1]):
                raise AdapterError(
                    msg(
                        "{source}: its entry {name} points outside the archive. It is not safe to use.",
                        source=source,
                        name=repr(str(member)),
                    )
                )
        roots = [member.parent for member in members if member.name == CONFIG]
        if not roots:
            refuse_others({member.name for member in members}, source)
        if len(roots) != 1:
            how = msg("{count} adapters are", count=len(roots)) if roots else msg("no adapter is")
            raise AdapterError(
                msg(
                    "{source}: {how} in this zip ({config}). Choose a zip that contains one adapter's folder.",
                    source=source,
                    how=how,
                    config=CONFIG,
                )
            )
        inside: dict[str, zipfile.ZipInfo] = {}
        for info, member in zip(archive.infolist(), members, strict=True):
            if member.parent == roots[0] and member.name in (*KEPT, *_TELLING):
                if member.name in inside:
                    raise AdapterError(
                        msg("{source}: {name} is in it twice. Create the zip again.", source=source, name=member.name)
                    )
                inside[member.name] = info
        refuse_others(set(inside), source)
        for name in KEPT:
            if name in inside and (problem := _unfit(name, inside[name])):
                if name not in _OPTIONAL:
                    raise AdapterError(
                        msg(
                            "{source}: its entry {name} {why}. It is not safe to use.",
                            source=source,
                            name=name,
                            why=problem,
                        )
                    )
                note(msg("{file} is skipped: it {why}.", file=name, why=problem))
            elif name in inside:
                with archive.open(inside[name]) as packed:
                    _copy(packed, target / name, inside[name].file_size)


def refuse_others(names: set[str], source: Path) -> None:
    """Raise AdapterError if the file names show a full model or a pickle that could run code."""
    if CONFIG not in names and "config.json" in names:
        raise AdapterError(
            msg(
                "{source}: this is a whole model (config.json), not an adapter. Use it with --model, or add it with "
                "`finetune-local models add`.",
                source=source,
            )
        )
    if not {WEIGHTS, MLX_WEIGHTS} & names and "adapter_model.bin" in names:
        raise AdapterError(
            msg(
                "{source}: adapter_model.bin is a pickle, which can run code when it is opened. Save it as "
                "safetensors with PEFT.",
                source=source,
            )
        )


def _unfit(name: str, info: zipfile.ZipInfo) -> Message | None:
    """Why a zip entry is refused, as the end of a sentence; None if it is accepted."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.is_dir() or kind not in (0, stat.S_IFREG):
        return msg("is a link, or not a regular file")
    if info.file_size > _MOST_BYTES.get(name, info.file_size):
        return msg(
            "is larger than {most_bytes} MB, too large for such a file", most_bytes=f"{_MOST_BYTES[name] / 1e6:.0f}"
        )
    if info.file_size > _RATIO_FROM and info.file_size > _MOST_RATIO * max(1, info.compress_size):
        return msg(
            "unpacks to {times} times its size, which trained weights never do",
            times=info.file_size // max(1, info.compress_size),
        )
    return None


@contextmanager
def _opened_zip(source: Path) -> Iterator[zipfile.ZipFile]:
    """The opened zip; any failure to read it becomes an AdapterError that names it."""
    try:
        with source.open("rb") as file:
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined] # before every member gets an object
            if end is not None and end[zipfile._ECD_SIZE] > _MOST_DIRECTORY:  # type: ignore[attr-defined]
                raise AdapterError(
                    msg(
                        "{source}: too many files are in this zip. Choose a zip that contains one adapter's folder.",
                        source=source,
                    )
                )
            with zipfile.ZipFile(file) as archive:
                yield archive
    except _Writing as error:
        raise error.args[0] from None
    except (
        *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
        *(OSError, ValueError, RuntimeError, NotImplementedError, OverflowError, MemoryError),
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AdapterError(
            msg(
                "{source}: the zip cannot be read ({error}). Create the zip again, without a password.",
                source=source,
                error=reason,
            )
        ) from None


class _Writing(Exception):
    """Wraps an OSError of the destination, so that it is not blamed on the source."""


def _copy(source: IO[bytes], target: Path, size: int) -> None:
    """Copy at most the declared number of bytes."""
    left = size
    try:
        file = target.open("xb")
    except OSError as error:
        raise _Writing(error) from None
    with file:
        while chunk := source.read(min(_CHUNK, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise AdapterError(msg("{file} grew while it was copied. Try again.", file=target.name))
            try:
                file.write(chunk)
            except OSError as error:
                raise _Writing(error) from None


@contextmanager
def _opened_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that is not a link. Links of a Hugging Face cache snapshot into the cache's own blob store are allowed."""
    if path.is_symlink() and (blob := _BLOB.fullmatch(str(path.readlink()))):
        store = path.parent.parent.parent / "blobs"
        if path.parent.parent.name == "snapshots" and not store.is_symlink():
            path = store / blob[1]
    with open_file(path, follow=False) as file:
        yield file


def _there(path: Path) -> bool:
    return os.path.lexists(path)
