"""From what the user wrote after --model to a folder: a path, an installed name, the default, or a copy in the hub's cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from finetune_local.errors import ModelError
from finetune_local.models.folder import CONFIG, ModelFolder
from finetune_local.models.install import installed, source_of
from finetune_local.paths import Home
from finetune_local.spec.fields import did_you_mean
from finetune_local.spec.run import DEFAULT_MODEL

Progress = Callable[[str, float | None], None]


def resolve(id: str, home: Home, progress: Progress) -> ModelFolder:  # noqa: A002 - the spec's word
    """The model that `id` names. Raises ModelError, DownloadFailed, DiskFull.

    A bare word is an installed model first and a folder in the current directory second; anything with a separator is a
    path first. Only the default model is ever fetched from here, and only while it is not installed.
    """
    path = Path(id).expanduser()
    if id.lower().endswith(".gguf") and path.is_file():
        return _gguf(path, home, progress)
    if _is_path(id) and path.is_dir():
        return ModelFolder.open(path)
    known = installed(home.models)
    if id in known:
        return ModelFolder.open(home.models / id, id)
    for name in known:
        if source_of(home.models / name).get("from") == id:  # ORG/NAME, as it was asked of the hub
            return ModelFolder.open(home.models / name, name)
    if id == DEFAULT_MODEL:
        from finetune_local.models.starter import install_starter

        return install_starter(home.models, progress)
    if (path / CONFIG).is_file():
        return ModelFolder.open(path)
    if id.count("/") == 1 and (cached := _in_hub_cache(id)) is not None:
        return ModelFolder.open(cached)
    raise ModelError(_not_found(id, [*known, DEFAULT_MODEL]))


def _is_path(text: str) -> bool:
    separators = {"/", os.sep, os.altsep} - {None}
    return text.startswith(("~", ".")) or any(s in text for s in separators if s) or Path(text).is_absolute()


def _not_found(text: str, known: list[str]) -> str:
    if Path(text).is_absolute() or text.startswith(("~", "./", "../", ".\\", "..\\")):
        return f"--model {text}: there is no such folder. Give a Hugging Face model folder, or a name from `models`."
    how = f"Download it: finetune-local models get {text}" if "/" in text else "See them all: finetune-local models"
    return f"--model {text}: no such model here.{did_you_mean(text, known)} Installed: {', '.join(known)}. {how}"


def _in_hub_cache(repository: str) -> Path | None:
    from finetune_local.models.local import hub_snapshot

    return hub_snapshot(repository)


def _gguf(path: Path, home: Home, progress: Progress) -> ModelFolder:
    """A GGUF is converted once; the copy is known by the file's hash."""
    from finetune_local.models.folder import sha256_of
    from finetune_local.models.gguf_import import install_gguf

    digest = None
    for name in installed(home.models):
        if source_of(home.models / name).get("from") == path.name:
            digest = digest or sha256_of(path)
            if source_of(home.models / name).get("sha256") == digest:
                return ModelFolder.open(home.models / name, name)
    return install_gguf(path, home.models, path.stem, progress)
