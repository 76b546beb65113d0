"""Run folders: create, list, find, rename, remove and restore them. A run folder is all that is known of a run.

run.json      the resolved spec                  events.jsonl   what happened, append-only
asked.json    what the user set of it            made_from      name of the run its settings were taken from
data/         encoded rows, data.json            checkpoints/   step-NNNNNN/
adapter/      the result                         report.md      the summary as a table
tokenizer/    tokenizer and template; copied to adapter/
base.json     digests of the base                damaged/       unusable checkpoints
worker.json   the training process               worker.log     output of libraries
stop          requests the worker to stop        worker.lock    locked by the training process
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

from finetune_local.adapters import manage
from finetune_local.adapters.companions import OF_RUN
from finetune_local.adapters.identity import rewrite
from finetune_local.adapters.library import MADE_FROM, made_from
from finetune_local.runtime.events import EventFormat
from finetune_local.runtime.kinds import JobKind
from finetune_local.runtime.process_folder import ProcessFolder
from finetune_local.spec.config_file import explicit_tables
from finetune_local.spec.run import RunSpec, as_tables, parse_spec
from finetune_local.system import trash
from finetune_local.system.errors import DamagedRun, SpecError, UnknownName, typed
from finetune_local.system.fields import did_you_mean
from finetune_local.system.files import ASIDE, disk_full, stamp, sweep, sweep_abandoned, sync, write_text
from finetune_local.system.files import remove as remove_files
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home, bad_name, located
from finetune_local.system.trash import Removed
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object
from finetune_local.training import events, job_run

KIND = job_run.KIND.key
"""The kind of runs in the trash."""

_NEW = ASIDE + "new-"
"""Prefix of the folder of a run that is being created."""

FINISH = "finish"
"""Content of the stop file that ends a run for good."""


class Run(ProcessFolder):
    """A run, by its folder."""

    on_full_disk = msg("Everything saved so far is intact. Free some space, then resume.")
    format: ClassVar[EventFormat] = events.EVENTS

    @property
    def kind(self) -> JobKind:
        """The kind of all runs."""
        return job_run.KIND

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapter; written when the run finishes or is stopped."""
        return self.folder / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def data(self) -> Path:
        """Folder of the encoded rows."""
        return self.folder / "data"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer, template and generation settings; runs of earlier versions do not have it."""
        return self.folder / OF_RUN

    @property
    def user_settings_file(self) -> Path:
        """What the user set, as tables for --config; runs of earlier versions do not have it."""
        return self.folder / "asked.json"

    @property
    def spec(self) -> RunSpec:
        """The spec in run.json. Raises SpecError if it is damaged, DamagedRun if a newer version seems to have written it."""
        path = self.folder / "run.json"
        try:
            # A kill during a rename may have left the old name in the file.
            return parse_spec({**read_json_object(path), "name": self.name}, str(path))
        except (OSError, ForeignTextError) as error:
            raise SpecError(
                msg("{path}: cannot be read ({error}). The run cannot be resumed.", path=path, error=error)
            ) from error
        except UnknownName as error:
            raise DamagedRun(
                msg("{error}\nIf a newer version wrote this run, update to resume it.", error=error)
            ) from error

    @property
    def made_from(self) -> str | None:
        """Name of the run that its settings were taken from; None if unknown."""
        return made_from(self.folder)

    def write_spec(self, spec: RunSpec) -> None:
        """Replace run.json."""
        write_text(self.folder / "run.json", json.dumps(as_tables(spec), indent=2, ensure_ascii=False) + "\n")

    def repair(self) -> None:
        """After a kill, cut a half-written line off events.jsonl and remove half-written folders. Needs the run's lock."""
        if self.events_file.exists():
            os.truncate(self.events_file, self.events_end())
        self.sweep()
        self.stop_file.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove half-written folders and restore those whose replacement was not completed. Needs the run's lock."""
        sweep(self.folder)
        sweep(self.checkpoints)

    def to_finish(self) -> bool:
        """Whether the stop file requests to end the run for good, with the adapter as it is, rather than to pause it."""
        try:
            return self.stop_file.read_text("ascii") == FINISH
        except (OSError, UnicodeDecodeError):
            return False


def create(home: Home, spec: RunSpec, *, as_set: RunSpec | None = None, made_from: str | None = None) -> Run:
    """Create a run folder with its spec. Raises SpecError if the name is taken or cannot be a folder's name.

    `as_set` is the spec as the user set it, if automatic values of `spec` are settled; `made_from` names the run that the settings
    were taken from.
    """
    if spec.name is not None and (problem := bad_name(spec.name)):
        raise SpecError(msg("--run {name} {problem}.", name=repr(spec.name), problem=problem))
    stem = re.sub(r"[^\w.-]+", "-", Path(spec.data.files[0]).stem if spec.data.files else "run").strip("-.")[:40]
    with disk_full(home.runs, msg("Free some space and start it again.")), _aside(home) as made:
        made.checkpoints.mkdir()
        user_set = explicit_tables(as_set or spec)
        write_text(made.user_settings_file, json.dumps(user_set, indent=2, ensure_ascii=False) + "\n")
        if made_from is not None:
            write_text(made.folder / MADE_FROM, made_from + "\n")
        for number in itertools.count(1):
            name = spec.name or f"{stem or 'run'}-{spec.method.key}-{number}"
            made.write_spec(spec.model_copy(update={"name": name}))
            if _named(made.folder, home.runs / name):
                return Run(home.runs / name)
            if spec.name is not None:
                break
    raise SpecError(
        msg(
            "--run {name}: there is a run of that name already. Choose another name, or resume it: "
            "finetune-local resume {name2}",
            name=name,
            name2=typed(name),
        )
    )


@contextmanager
def _aside(home: Home) -> Iterator[Run]:
    """A temporary folder to create a run in; removed on exit unless it was renamed. After a kill it occupies no run's name."""
    sweep_abandoned(home.runs)
    folder = Path(tempfile.mkdtemp(prefix=_NEW, dir=home.runs))
    try:
        yield Run(folder)
    finally:
        remove_files(folder)


def _named(folder: Path, target: Path) -> bool:
    """Rename a finished folder to `target`; False if `target` exists. Raises OSError."""
    if target.exists():
        return False
    try:
        folder.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return False  # another process created it meanwhile
    sync(target.parent)
    return True


def find(home: Home, name: str) -> Run:
    """A run by its name or folder. Raises SpecError, which suggests similar names."""
    named = home.runs / name
    if Path(name).name == name and (named / "run.json").exists():
        return Run(named.resolve())
    for folder in (named, located(name)):
        # A folder elsewhere with just a run.json may be the user's, with other files that `remove` would take along.
        if (folder / "run.json").exists() and (folder / "checkpoints").is_dir():
            return Run(folder.resolve())
    known = [run.name for run in every(home)]
    listed = msg(" Known runs: {names}.", names=", ".join(known[:8])) if known else msg(" There are no runs yet.")
    raise SpecError(
        msg(
            "there is no run '{name}' in {folder}.{did_you_mean}",
            name=name,
            folder=home.runs,
            did_you_mean=did_you_mean(name, known) or listed,
        )
    )


def of_config(config: Path, home: Home) -> str | None:
    """The name of the run whose folder contains a settings file; None for any other file."""
    folder = located(config).resolve().parent
    return folder.name if folder.parent == home.runs.resolve() and (folder / "checkpoints").is_dir() else None


def every(home: Home) -> list[Run]:
    """All runs, newest first. Folders that are not runs or cannot be read are skipped."""
    place, found = home.runs, []
    for name in os.listdir(place):  # noqa: PTH208 - creates no Path for names that are not runs
        (known,) = stamp(place, f"{name}/run.json")
        if known is not None and not name.startswith(ASIDE):
            found.append((known[0], name))
    return [Run(place / name) for _, name in sorted(found, reverse=True)]


def running(home: Home) -> list[Run]:
    """Runs whose worker is alive. Called every second, so no files of the others are read."""
    waiting = [Run(folder) for folder in home.runs.iterdir() if (folder / "worker.json").exists()]
    return [run for run in waiting if run.alive()]


def rename(run: Run, name: str, home: Home) -> Run:
    """Rename a run and its adapter, and update what refers to it by name.

    Raises SpecError if it is running or the name is taken or invalid, RunError if the system refuses.
    """
    if problem := bad_name(name):
        raise SpecError(msg("the name {name} {problem}.", name=repr(name), problem=problem))
    target = home.runs / name
    with _kept_idle(run):
        if target.exists() and not target.samefile(run.folder):  # on case-insensitive disks it is the same folder
            raise SpecError(msg("a run '{name}' already exists. Choose another name.", name=name))
        trash.moved(run.folder, target)
        renamed = Run(target)
        _write_name(renamed, name)
        removed = [one.content for one in trash.follow(home, run.folder, target)]
        for folder in (renamed.adapter, *renamed.checkpoints.glob("step-*"), *removed):
            rewrite(folder, run=name)
    manage.follow_rename(run.name, name, home)
    for other in every(home):
        if other.made_from == run.name:
            write_text(other.folder / MADE_FROM, name + "\n")
    return renamed


def _write_name(run: Run, name: str) -> None:
    """Write the new name to run.json, keeping its modification time, by which lists are sorted. A damaged file stays as it is."""
    file = run.folder / "run.json"
    try:
        times, values = file.stat(), read_json_object(file)
    except (OSError, ValueError):
        return
    write_text(file, json.dumps({**values, "name": name}, indent=2, ensure_ascii=False) + "\n")
    with suppress(OSError):  # only its place in lists depends on it
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def check_idle(run: Run) -> None:
    """Raise SpecError if the run's worker is alive."""
    if run.alive():
        raise _running(run)


@contextmanager
def _kept_idle(run: Run) -> Iterator[None]:
    """Lock a run while its folder is moved, so that no worker starts in it. Raises SpecError if one is running."""
    with run.locked(moving=True) as idle:
        if not idle:
            raise (
                _running(run)
                if run.folder.exists()
                else SpecError(msg("run '{name}' no longer exists.", name=run.name))
            )
        yield


def _running(run: Run) -> SpecError:
    return SpecError(
        msg(
            "run '{name}' is running. Stop it first: finetune-local runs stop {name2}",
            name=run.name,
            name2=typed(run.name),
        )
    )


def remove(run: Run, home: Home) -> Removed:
    """Move a run with its checkpoints and adapter to the trash; restore() reverses it.

    Raises SpecError if it is running, RunError if the system refuses.
    """
    with _kept_idle(run):
        return trash.throw(home, KIND, run.name, run.folder)


def restore(name: str | None, home: Home) -> Run:
    """Restore the last removed run, or the last removed run called `name`. Raises SpecError if there is none."""
    for removed in trash.every(home, KIND):
        if name in (None, removed.name):
            return put_back(removed)
    what = msg("no run '{name}'", name=name) if name else msg("no run")
    raise SpecError(msg("there is {what} in the trash.", what=what))


def put_back(removed: Removed) -> Run:
    """Restore a run from the trash. Raises SpecError if its name is taken."""
    if removed.source.exists():
        raise SpecError(
            msg(
                "{path} exists, so '{name}' cannot be restored there. Rename or remove that first.",
                path=removed.source,
                name=removed.name,
            )
        )
    return Run(trash.put_back(removed, removed.source))


def delete(run: Run) -> None:
    """Delete a run folder for good. Raises SpecError if it is running."""
    doomed = run.folder.with_name(ASIDE + run.name)
    with _kept_idle(run):
        remove_files(doomed)
        trash.moved(run.folder, doomed)  # atomic: a worker that starts later finds no partly deleted folder
        remove_files(doomed)


def ask_to_stop(run: Run, patience: float = 0.0, *, finish: bool = False) -> bool:
    """Request the worker to save after its current step and exit; wait up to `patience` seconds. Returns whether it has ended.

    With `finish` the run ends for good; otherwise `resume` continues it.
    """
    return run.ask_to_stop(FINISH if finish else "", patience)
