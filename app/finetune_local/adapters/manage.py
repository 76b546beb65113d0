"""Change the library: import adapters, rename them, write notes, move them to the trash and restore them."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from finetune_local.adapter_format import CONFIG, read_adapter, use_plain_names
from finetune_local.adapters.identity import rewrite
from finetune_local.adapters.import_files import copy_folder, copy_zip
from finetune_local.adapters.library import NOTE, Entry, entries, entry
from finetune_local.adapters.mlx_lm import convert, is_mlx_lm
from finetune_local.system import checksums, trash
from finetune_local.system.errors import AdapterError
from finetune_local.system.files import disk_full, sync, sync_tree, write_text
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.paths import Home, bad_name, expanded
from finetune_local.system.trash import Removed

KIND = "adapter"
"""The kind of an adapter's trash entry."""


def bring_in(source: Path, home: Home, name: str | None = None, note: Callable[[str], None] = lambda _: None) -> Entry:
    """Copy a PEFT or mlx-lm adapter, a folder or a zip, into the library. `note` receives a sentence for what is skipped or converted.

    Raises AdapterError if it is not an adapter or is unsafe, and DiskFull; nothing is left behind then.
    """
    source = expanded(source)
    chosen = name or (source.stem if source.is_file() else source.resolve().name)
    if chosen == "adapter":
        chosen = source.resolve().parent.name
    check_name(chosen, home)
    aside = home.adapters / f".importing-{chosen}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with disk_full(aside, msg("Free some space on it and import again.")):
            aside.mkdir()
            if source.is_dir():
                copy_folder(source, aside, note)
            elif source.is_file() and zipfile.is_zipfile(source):
                copy_zip(source, aside, note)
            else:
                raise _no_adapter(source)
            if is_mlx_lm(aside):
                convert(aside)
                note(msg("an mlx-lm adapter: it was converted to the equivalent PEFT format."))
            read_adapter(aside)
            if use_plain_names(aside):
                note(msg("its tensor names contained a wrapper's prefix: they were renamed as in PEFT."))
            checksums.write(aside, leave_out=(NOTE,))
            sync_tree(aside)
            aside.rename(home.adapters / chosen)
            sync(home.adapters)
    except AdapterError as error:
        raise AdapterError(error.message.with_values(aside, source)) from None
    except PermissionError as error:
        raise AdapterError(
            msg(
                "{path}: {error}. Change its permissions, or copy it first.",
                path=error.filename,
                error=system_reason(error),
            )
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return entry(chosen, home)


def rename(name: str, new: str, home: Home) -> Entry:
    """Rename an imported adapter. Raises AdapterError for a run's result, which has the run's name (workspace/ renames both)."""
    found = entry(name, home)
    if found.origin == "run":
        raise AdapterError(
            msg(
                "'{name}' is the adapter of the run with that name. Create a copy under the new name: finetune-local "
                'adapters import "{folder}" --name {name2}',
                name=name,
                folder=found.folder,
                name2=new,
            )
        )
    check_name(new, home)
    trash.moved(found.folder, home.adapters / new)
    follow_rename(name, new, home)
    return entry(new, home)


def follow_rename(name: str, new: str, home: Home) -> None:
    """Update adapters that were extracted from a renamed one."""
    for found in entries(home):
        source = found.extracted_from
        if keys := [key for key in ("adapter", "run") if source.get(key) == name]:
            rewrite(found.folder, extracted_from={**source, **dict.fromkeys(keys, new)})


def write_note(name: str, text: str, home: Home) -> Entry:
    """Write the user's note on an adapter; "" removes it. Raises AdapterError, DiskFull."""
    found = entry(name, home)
    path = found.folder / NOTE
    if text.strip():
        write_text(path, text.strip() + "\n")
    else:
        path.unlink(missing_ok=True)
    return found


def remove(name: str, home: Home) -> Removed:
    """Move an adapter to the trash; `restore` undoes it. A run keeps its data and checkpoints."""
    return trash.throw(home, KIND, name, entry(name, home).folder)


def trashed(home: Home) -> list[Removed]:
    """The adapters in the trash, newest first."""
    return trash.every(home, KIND)


def restore(name: str | None, home: Home) -> Entry:
    """Restore the most recently removed adapter called `name`, or the most recent of all. Raises AdapterError if there is none."""
    for removed in trashed(home):
        if name in (None, removed.name):
            return put_back(removed, home)
    what = msg("no adapter '{name}'", name=name) if name else msg("nothing")
    raise AdapterError(msg("there is {what} in the trash.", what=what))


def put_back(removed: Removed, home: Home) -> Entry:
    """Restore one trash entry; if its run no longer exists it becomes an imported adapter. Raises AdapterError."""
    target = removed.source
    if target.name == "adapter" and target.parent.parent == home.runs and not (target.parent / "run.json").exists():
        target = home.adapters / removed.name
    if target.exists():
        raise AdapterError(
            msg(
                "{path} exists, so '{name}' cannot be restored there. Rename or remove that first.",
                path=target,
                name=removed.name,
            )
        )
    trash.put_back(removed, target)
    return entry(removed.name, home)


def check_name(name: str, home: Home) -> None:
    """Raise AdapterError if a new adapter cannot have this name."""
    if problem := bad_name(name):
        raise AdapterError(
            msg("the name {name} {problem}. Choose another with --name.", name=repr(name), problem=problem)
        )
    if name == "base" or name in {found.name for found in entries(home)} or (home.adapters / name).exists():
        raise AdapterError(msg("an adapter '{name}' already exists. Choose another name with --name.", name=name))


def free_name(stem: str, home: Home) -> str:
    """`stem`, with a number appended if an adapter has that name already."""
    taken = {found.name for found in entries(home)}
    name, number = stem, 2
    while name in taken or (home.adapters / name).exists():
        name, number = f"{stem}-{number}", number + 1
    return name


def _no_adapter(source: Path) -> AdapterError:
    """The error for a source that is neither a folder nor an intact zip."""
    if not source.exists():
        return AdapterError(
            msg(
                "{path} does not exist. Choose an adapter's folder (with {file}) or a zip of one.",
                path=source,
                file=CONFIG,
            )
        )
    if source.is_file():
        with source.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return AdapterError(
                    msg(
                        "{path} is incomplete: it begins like a zip file, but has no end. Download or copy it again.",
                        path=source,
                    )
                )
    return AdapterError(
        msg(
            "{path} is neither a folder nor a zip file. Choose an adapter's folder (with {file}) or a zip of one.",
            path=source,
            file=CONFIG,
        )
    )
