"""Digests of the base's weights, in the run folder's `base.json`. A run resumes only on the weights it was started with.

Bases of up to 4 GiB are hashed completely, which takes a few seconds. Of a larger base only the header and 64 samples of each file
are hashed: this finds another model, another save of the same model or a truncated file, but hardly a single changed byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_local.adapters.identity import check_same_base, read_identity
from finetune_local.system.errors import AdapterError, DamagedRun, typed
from finetune_local.system.files import disk_full, write_text
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object
from finetune_local.training.checkpoints import checkpoint
from finetune_local.training.checkpoints.checkpoint import RESUME
from finetune_local.training.events import Event, Note, Phase
from finetune_local.training.run_folder.runs import Run

if TYPE_CHECKING:
    from finetune_local.models.folder import ModelFolder

FILE = "base.json"
WHOLE = 4 * 2**30
"""The most bytes of weights that are hashed completely."""

_PLACES, _PLACE_BYTES = 64, 2**16
_SLOW = 2**29
"""Hashing this many bytes takes about a second, so the user sees a phase."""


class Weights(BaseModel):
    """The content of base.json: length and SHA-256 of each file. `whole`: the digests cover every byte."""

    model_config = ConfigDict(strict=True)

    whole: bool
    files: dict[str, tuple[int, str]]


def same_as_begun(run: Run, model: ModelFolder, beside: Run | None = None) -> Iterator[Event]:
    """Record the weights of the base for a new run; for a resumed one raise DamagedRun if they have changed.

    `beside` is a run on the same base whose weights were just hashed: its base.json is reused.
    """
    files, path = model.weight_files, run.folder / FILE
    with disk_full(model.path, RESUME):
        if beside is not None:
            now = _read(beside.folder / FILE)
        else:
            if _size(files) >= _SLOW:
                yield Phase(name=msg("checking the base's weights"))
            now = weights_of(files)
    if not path.exists() or not checkpoint.every(run.checkpoints):
        write_text(path, json.dumps(now.model_dump(), indent=1) + "\n", RESUME)
        return
    try:
        begun = _read(path)
    except (OSError, ForeignTextError, ValidationError):
        yield Note(
            text=msg(
                "{file} is damaged, so it is unknown whether the base's weights have changed since the run started",
                file=path,
            )
        )
        write_text(path, json.dumps(now.model_dump(), indent=1) + "\n", RESUME)
        return
    if begun.whole == now.whole and begun.files == now.files:
        return
    _check_identity(run, model)
    names = sorted({*begun.files, *now.files})
    changed = next((name for name in names if begun.files.get(name) != now.files.get(name)), names[0])
    raise DamagedRun(
        msg(
            "the weights of {model} in {place} have changed since run '{run}' started ({file} differs). The run "
            "was not changed. Restore the original model (download or copy it again) and resume, or start again "
            "with the current one: finetune-local --config {folder} --run {name}",
            model=model.name,
            place=model.path,
            run=run.name,
            file=changed,
            folder=typed(str(run.folder / "run.json")),
            name=typed(run.name + "-again"),
        )
    )


def _read(path: Path) -> Weights:
    return Weights.model_validate_json(json.dumps(read_json_object(path)))


def _check_identity(run: Run, model: ModelFolder) -> None:
    """Raise AdapterError if config or tokenizer differ as well: its message is more specific."""
    newest = checkpoint.latest(run.checkpoints)
    try:
        identity = None if newest is None else read_identity(newest)
    except AdapterError:  # damaged: reported when the run resumes
        return
    if identity is not None:
        check_same_base(identity, model)


def weights_of(files: Sequence[Path]) -> Weights:
    """Lengths and digests of the files, by file name. Raises OSError."""
    whole = _size(files) <= WHOLE
    return Weights(whole=whole, files={path.name: (path.stat().st_size, _digest(path, whole=whole)) for path in files})


def _size(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _digest(path: Path, *, whole: bool) -> str:
    with path.open("rb") as file:
        if whole:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, size = hashlib.sha256(), path.stat().st_size
        for number in range(_PLACES + 1):  # from the header to the end of the file
            file.seek(max(0, (size - _PLACE_BYTES) * number // _PLACES))
            digest.update(file.read(_PLACE_BYTES))
        return digest.hexdigest()
