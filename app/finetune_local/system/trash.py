"""The trash: removed things that can be restored, each in a folder with a record of what and where it was.

Nothing is deleted automatically. The trash is on the home's disk, so removing and restoring are renames, whatever the size.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune_local.system.errors import Damaged, RunError
from finetune_local.system.files import disk_full, write_text
from finetune_local.system.files import remove as remove_files
from finetune_local.system.messages import message_of, msg, system_reason
from finetune_local.system.paths import Home
from finetune_local.system.untrusted.text import read_json_object

FACTS = "trash.json"


@dataclass(frozen=True)
class Removed:
    """One thing in the trash. `kind` is "adapter", "run" or "chat" (a file); `source` is its original path; `when` is seconds since the
    epoch.
    """

    place: Path
    kind: str
    name: str
    source: Path
    when: float

    @property
    def key(self) -> str:
        """The name of its folder in the trash."""
        return self.place.name

    @property
    def content(self) -> Path:
        """The path of the removed file or folder."""
        return self.place / self.kind

    @property
    def bytes_on_disk(self) -> int:
        """Size of its files."""
        if self.content.is_file():
            return self.content.lstat().st_size
        found = (Path(folder) / name for folder, _, names in os.walk(self.content) for name in names)
        return sum(file.lstat().st_size for file in found)


def throw(home: Home, kind: str, name: str, folder: Path) -> Removed:
    """Move a folder or file to the trash. Raises RunError if the system refuses, DiskFull."""
    when = time.time()
    stem = datetime.datetime.fromtimestamp(when, datetime.UTC).strftime("%Y%m%d-%H%M%S-%f")
    place, number = home.trash / stem, 1
    with disk_full(home.trash, msg("Empty the trash, or remove it for good.")):
        while True:
            try:
                place.mkdir()
                break
            except FileExistsError:  # a coarse clock
                number += 1
                place = home.trash / f"{stem}-{number}"
        try:
            removed = Removed(place, kind, name, folder, when)
            _write_facts(home, removed)
            moved(folder, removed.content)
        except BaseException:
            remove_files(place)
            raise
    return removed


def every(home: Home, kind: str | None = None) -> list[Removed]:
    """The trash's entries (of a kind), newest first. damaged() returns the unreadable ones; empty() removes those too."""
    found = [_read(home, place) for place in sorted(home.trash.iterdir(), reverse=True)]
    return [one for one in found if isinstance(one, Removed) and kind in (None, one.kind)]


def damaged(home: Home) -> list[Damaged]:
    """Entries without a readable record, newest first."""
    found = [_read(home, place) for place in sorted(home.trash.iterdir(), reverse=True)]
    return [one for one in found if isinstance(one, Damaged)]


def find(home: Home, key: str) -> Removed:
    """The entry with this key. Raises RunError if it no longer exists."""
    found = next((one for one in every(home) if one.key == key), None)
    if found is None:
        raise RunError(msg("it is no longer in the trash: it was restored, or the trash was emptied."))
    return found


def put_back(removed: Removed, target: Path) -> Path:
    """Move the content back to `target`, which must not exist; returns it. Raises RunError if the system refuses."""
    target.parent.mkdir(parents=True, exist_ok=True)
    moved(removed.content, target)
    remove_files(removed.place)
    return target


def empty(home: Home, only: Iterable[Removed] | None = None) -> int:
    """Delete all entries, or some, for good; returns how many. Raises RunError."""
    places = list(home.trash.iterdir()) if only is None else [one.place for one in only]
    for place in places:
        try:
            remove_files(place)
        except OSError as error:
            raise RunError(
                msg(
                    "{path} cannot be deleted ({error}). Close the programs that use its files.",
                    path=place,
                    error=system_reason(error),
                )
            ) from None
    return len(places)


def follow(home: Home, old: Path, new: Path) -> list[Removed]:
    """A folder was renamed: entries removed from inside it will be restored into the new one. Returns those entries."""
    found = []
    for one in every(home):
        if one.source.is_relative_to(old):
            name = new.name if one.name == old.name else one.name
            found.append(Removed(one.place, one.kind, name, new / one.source.relative_to(old), one.when))
            _write_facts(home, found[-1])
    return found


def moved(folder: Path, target: Path) -> None:
    """Rename a folder. Raises RunError with the reason if the system refuses."""
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise RunError(
                msg(
                    "{path} is on another disk than {place}, so it cannot be moved there.",
                    path=folder,
                    place=target.parent,
                )
            ) from None
        raise RunError(
            msg(
                "{path} cannot be moved to {place} ({error}). Close the programs that use its files and try again.",
                path=folder,
                place=target,
                error=system_reason(error),
            )
        ) from None


def _write_facts(home: Home, removed: Removed) -> None:
    source = removed.source
    if source.is_relative_to(home.root):  # the home may be moved
        source = source.relative_to(home.root)
    facts = {"kind": removed.kind, "name": removed.name, "from": source.as_posix(), "when": removed.when}
    write_text(removed.place / FACTS, json.dumps(facts, ensure_ascii=False) + "\n")


class _Facts(BaseModel):
    """The contents of trash.json."""

    model_config = ConfigDict(allow_inf_nan=False)

    kind: str
    name: str
    source: str = Field(alias="from")
    when: Annotated[float, Field(ge=0, lt=1e11)]


def _read(home: Home, place: Path) -> Removed | Damaged:
    file = place / FACTS
    try:
        facts = _Facts.model_validate(read_json_object(file))
        found = Removed(place, facts.kind, facts.name, home.root / facts.source, facts.when)
        if Path(facts.kind).name == facts.kind and found.content.exists():
            return found
        problem = msg("the item it describes is missing")
    except ValidationError as error:
        problem = msg("'{name}' is missing or invalid", name=".".join(map(str, error.errors()[0]["loc"])))
    except (OSError, ValueError) as error:
        problem = message_of(error)
    return Damaged(
        place.name,
        place,
        msg("{file}: cannot be read ({error}). `finetune-local trash empty` deletes it.", file=file, error=problem),
    )
