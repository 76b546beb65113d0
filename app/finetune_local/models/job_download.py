"""Job kind: download, convert or copy a base model, as `models get` does, and the downloads of all windows.

Each is started once; it can be paused, resumed and cancelled, also after the app was restarted. A stopped one keeps its partial files.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from finetune_local.models import starter
from finetune_local.models.download import free_name, get, is_place, repository_of
from finetune_local.models.folder import ModelFolder
from finetune_local.models.hub import repository
from finetune_local.models.hub.access import refuse_offline
from finetune_local.models.hub.http_file import Transfer
from finetune_local.models.install import installed
from finetune_local.models.local import LocalModel, add_folder, is_gguf
from finetune_local.runtime import jobs
from finetune_local.runtime.job import Job, StoppedByUser
from finetune_local.runtime.kinds import JobKind, Reporter
from finetune_local.runtime.status import Status
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg
from finetune_local.system.paths import Home, located

_EVERY = 0.5
_SLICE = 0.2
_PATIENCE = 5.0


def run(arguments: Mapping[str, Any], home: Home, report: Reporter) -> Mapping[str, Any]:
    """`arguments`: what (a name, ORG/NAME, a file or a folder), and optionally name and revision.

    They are stored on disk, so the token is never among them; it comes from the environment or the keyring. Progress facts are those
    of a Transfer.
    """
    newest: dict[str, Any] = {}
    phase_before, reported_at = "", 0.0

    def transfer(now: Transfer) -> None:
        newest.update(asdict(now))

    def progress(text: str, done: float | None) -> None:
        nonlocal phase_before, reported_at
        # The numbers in the text are in the facts too; without them it changes once per file, and fewer lines are written.
        facts, phase = dict(newest), text.partition(": ")[0] if newest else text
        newest.clear()
        now = time.monotonic()
        if phase == phase_before and now - reported_at < _EVERY and done != 1.0:
            report.check()
            return
        phase_before, reported_at = phase, now
        report(phase, done, **facts)

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            report.check()
            time.sleep(min(_SLICE, left))

    options = {key: arguments[key] for key in ("name", "revision") if arguments.get(key)}
    model = get(str(arguments["what"]), home, progress, transfer=transfer, pause=pause, **options)
    return {"name": model.name, "path": str(model.path), "parameters": model.parameters, "bytes": model.bytes_on_disk}


KIND = JobKind("download", run, resumable=True, text_arguments=("what",))


_starting = threading.Lock()


def start(what: str, home: Home) -> Job:
    """Download, convert or copy a model; returns the unfinished job for the same model, if there is one.

    Raises ModelError (unknown, offline).
    """
    key = _key(what)
    if not is_place(key):
        refuse_offline(f"downloading {key}")
    with _starting:
        for known in unfinished(home):
            if _key_of(known) == key:
                if (
                    known.status() is not Status.RUNNING
                ):  # a worker that has written its last event may still be exiting
                    jobs.restart(known, home)
                return known
        name = free_name(key, home)
        return jobs.start(home, KIND, {"what": key, **({"name": name} if name else {})})


def unfinished(home: Home) -> list[Job]:
    """The unfinished downloads, newest first."""
    return [known for known in jobs.every(home, KIND) if known.status() is not Status.FINISHED]


def resume(name: str, home: Home) -> Job:
    """Resume a paused or failed download. Raises SpecError if there is no such job, ModelError if offline."""
    return start(_key_of(jobs.find(home, name)), home)


def pause(name: str, home: Home) -> Job:
    """Pause a download, so that it can be resumed; one that does not react, because its server does not answer, is killed.

    Raises SpecError if there is no such job.
    """
    found = jobs.find(home, name)
    found.ask_to_stop()
    found.wait_for_exit(_PATIENCE)
    if found.alive():
        found.kill()
        found.wait_for_exit()
    if found.process_state().killed:
        found.append(StoppedByUser())
    found.stop_file.unlink(missing_ok=True)
    return found


def cancel(name: str, home: Home) -> None:
    """Cancel a download: delete its partial files and the job. Raises SpecError if there is no such job."""
    found = pause(name, home)
    key = _key_of(found)
    if key == DEFAULT_MODEL:
        starter.discard(home.models)
    elif not is_place(key):
        repository.discard(key, home)
    jobs.remove(found)


def result_of(name: str, home: Home) -> str | None:
    """The name of a downloaded model, as `--model` accepts it; None if the job is unfinished or the model was removed."""
    folder = home.jobs / name
    if not (folder / "job.json").is_file():
        return None
    state = Job(folder).state()
    made = str(state.result["name"]) if state.status is Status.FINISHED and state.result else None
    return made if made in installed(home.models) else None


def add(path: str, home: Home, *, copy: bool) -> Job | list[LocalModel]:
    """Add a model that is on this machine.

    A GGUF file is converted and a folder is copied, each by a job; without `copy` the folder is searched for models from now on, and
    those found are returned. Raises ModelError, SpecError, DiskFull.
    """
    place = located(path.strip().strip("\"'"))
    if not path.strip():
        raise ModelError(msg("enter the path of a model's folder or of a GGUF file."))
    if place.is_file():
        if not is_gguf(place):
            raise ModelError(
                msg("{place}: this file is not a GGUF. Choose the folder with the model's config.json.", place=place)
            )
        return start(str(place.absolute()), home)
    if copy and place.is_dir():
        ModelFolder.open(place)  # so that an unusable folder is refused before the job starts
        return start(str(place.absolute()), home)
    return add_folder(place)


def _key(what: str) -> str:
    """What identifies a model: its full path, or ORG/NAME, or the short name of the default."""
    if is_place(what):
        path = located(what).absolute()
        if not path.exists():
            raise ModelError(msg("{what}: file or folder not found. Check the path.", what=what))
        return str(path)
    return repository_of(what)


def _key_of(known: Job) -> str:
    return str(known.arguments["what"])
