"""Restore what a run resumes from: its newest intact checkpoint, its prepared data, and the check that the base is the same.

Damage is skipped and reported. A run resumes only on the weights it was started with, whose digests are in the run folder's
`base.json`. Bases of up to 4 GiB are hashed completely, which takes a few seconds. Of a larger base only the header and 64 samples
of each file are hashed: this finds another model, another save of the same model or a truncated file, but hardly a single changed byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune_local.adapters.identity import check_same_base, read_identity
from finetune_local.system import checksums
from finetune_local.system.errors import AdapterError, DamagedRun, DataError, typed
from finetune_local.system.files import ASIDE, disk_full, put, remove, write_text
from finetune_local.system.messages import Message, join_messages, message_of, msg
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object
from finetune_local.training.checkpoints import checkpoint
from finetune_local.training.checkpoints.checkpoint import RESUME, Loaded
from finetune_local.training.events import Checkpoint, Event, Note, Phase, Validation
from finetune_local.training.run_folder.runs import Run

if TYPE_CHECKING:
    from finetune_local.data.dataset.prepare import Prepared


if TYPE_CHECKING:
    from finetune_local.models.folder import ModelFolder


Unusable = Sequence[tuple[Path, str]]
"""Unusable checkpoints, newest first, each with the reason."""

BASE_FILE = "base.json"
WHOLE = 4 * 2**30
"""The most bytes of weights that are hashed completely."""
_PLACES, _PLACE_BYTES = 64, 2**16
_SLOW = 2**29
"""Hashing this many bytes takes about a second, so the user sees a phase."""


def newest_intact(run: Run, use: Callable[[Loaded], None]) -> Generator[Event, None, Loaded | None]:
    """Load the newest intact checkpoint that `use` accepts; None if the run has no checkpoints.

    `use` raises DamagedRun to reject a checkpoint. Rejected ones are moved to `damaged`, because checkpoints saved from now on have
    lower numbers. Raises DamagedRun if there are checkpoints but none is intact; nothing is moved then.
    """
    unusable: list[tuple[Path, str]] = []
    for place in reversed(checkpoint.every(run.checkpoints)):
        yield Phase(name=msg("resuming from {checkpoint}", checkpoint=place.name))
        try:
            loaded = checkpoint.load(place)
            use(loaded)
        except DamagedRun as error:
            unusable.append((place, message_of(error)))
            continue
        for bad, reason in unusable:
            moved = checkpoint.move_to_damaged(bad, run.folder)
            yield Note(
                text=msg(
                    "the checkpoint {name} cannot be used ({why}). The run continues from {name2}, the newest intact "
                    "one. The unusable one was moved to {place}.",
                    name=bad.name,
                    why=reason,
                    name2=place.name,
                    place=moved,
                )
            )
        yield from _missing_events(run, loaded)
        return loaded
    if unusable:
        raise DamagedRun(none_is_intact(run, unusable))
    if any(isinstance(event, Checkpoint) for event in run.history()):
        yield Note(text=msg("this run's checkpoints are missing, so it starts over with the same settings and data."))
    return None


def none_is_intact(run: Run, unusable: Unusable) -> Message:
    """The error message for a run none of whose checkpoints can be used, with what to do next."""
    found = join_messages(
        "; ", (msg("{place}: {reason}", place=place.name, reason=reason) for place, reason in unusable)
    )
    return msg(
        "run '{run}' has no usable checkpoint ({why}). Nothing was changed. If you have a copy of {place}, "
        "restore it and resume. Otherwise start again with the same settings: finetune-local --config "
        "{folder} --run {name}",
        run=run.name,
        why=found,
        place=run.checkpoints,
        folder=typed(str(run.folder / "run.json")),
        name=typed(run.name + "-again"),
    )


def open_data(
    run: Run, vocabulary: int, make: Callable[[Path], Generator[Event, None, Prepared]]
) -> Generator[Event, None, Prepared]:
    """Open the run's prepared data. Damaged data is prepared again by `make`, provided that the rows come out identical.

    Raises DamagedRun if they differ and the run has checkpoints; DataError if data without checksums does not fit the model.
    """
    from finetune_local.data.dataset.prepare import DATA, open_prepared, same_rows

    begun = bool(checkpoint.every(run.checkpoints))
    known, problem = _sums(run.data)
    if (run.data / DATA).exists() and problem is None:
        data = open_prepared(run.data)
        if known is None and not all(side.fits(vocabulary) for side in (data.train, data.validation)):
            raise DataError(
                msg(
                    "{data}: the prepared data has token ids that the model does not have. Start a new run.",
                    data=run.data,
                )
            )
        return data
    if not begun or (known is None and problem is None):
        return (yield from make(run.data))
    problem = problem or msg("{name} is missing", name=DATA)
    yield Phase(name=msg("the prepared data is damaged: rebuilding it"))
    aside = run.data.with_name(ASIDE + run.data.name)
    remove(aside)
    try:
        yield from make(aside)
    except DataError as error:
        raise DamagedRun(
            msg(
                "the prepared data in {place} is damaged ({why}) and cannot be rebuilt: {error}",
                place=run.data,
                why=problem,
                error=error,
            )
        ) from None
    again = checksums.read(aside)
    assert again is not None
    # If only the checksums are damaged, the new rows still equal those on disk.
    if not (known and same_rows(known, again)) and not same_rows(_digests(run.data), again):
        remove(aside)
        raise DamagedRun(
            msg(
                "the prepared data in {place} is damaged ({why}), and its source files have changed, so it cannot be "
                "rebuilt. If you have a copy of either, restore it and resume.",
                place=run.data,
                why=problem,
            )
        )
    put(aside, run.data)
    yield Note(
        text=msg("the prepared data was damaged ({why}): it was rebuilt from its files and is identical.", why=problem)
    )
    return open_prepared(run.data)


def _sums(folder: Path) -> tuple[checksums.Known | None, str | None]:
    """The checksums of the prepared data, and what is wrong with the data according to them."""
    from finetune_local.data.dataset import prepare

    try:
        return checksums.read(folder), prepare.problem(folder)
    except ForeignTextError as error:
        return None, message_of(error)


def _digests(folder: Path) -> checksums.Known:
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return {name: {digest} for name, digest in checksums.digests(folder, names).items()}


def _missing_events(run: Run, loaded: Loaded) -> Generator[Event, None, None]:
    """Events that belong to a checkpoint but are not in events.jsonl: the run was killed between saving and appending them."""
    step, state = loaded.state.step, loaded.state
    known = {(type(event), getattr(event, "step", None)) for event in run.history()}
    if state.validation_loss is not None and state.best_step == step and (Validation, step) not in known:
        yield Validation(step=step, loss=state.validation_loss, best=True)
    if (Checkpoint, step) not in known:
        yield Checkpoint(step=step, folder=str(loaded.folder))


class Weights(BaseModel):
    """The content of base.json: length and SHA-256 of each file. `whole`: the digests cover every byte."""

    model_config = ConfigDict(strict=True)

    whole: bool
    files: dict[str, tuple[int, str]]


def same_as_begun(run: Run, model: ModelFolder, beside: Run | None = None) -> Iterator[Event]:
    """Record the weights of the base for a new run; for a resumed one raise DamagedRun if they have changed.

    `beside` is a run on the same base whose weights were just hashed: its base.json is reused.
    """
    files, path = model.weight_files, run.folder / BASE_FILE
    with disk_full(model.path, RESUME):
        if beside is not None:
            now = _read_base(beside.folder / BASE_FILE)
        else:
            if _total_size(files) >= _SLOW:
                yield Phase(name=msg("checking the base's weights"))
            now = weights_of(files)
    if not path.exists() or not checkpoint.every(run.checkpoints):
        write_text(path, json.dumps(now.model_dump(), indent=1) + "\n", RESUME)
        return
    try:
        begun = _read_base(path)
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


def _read_base(path: Path) -> Weights:
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
    whole = _total_size(files) <= WHOLE
    return Weights(whole=whole, files={path.name: (path.stat().st_size, _digest(path, whole=whole)) for path in files})


def _total_size(files: Sequence[Path]) -> int:
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
