"""Checkpoints: an adapter folder plus the optimizer's state, the loop's counters and checksums of all files.

A checkpoint is a complete adapter folder and can be used as one. A resumed run continues exactly: data order and random numbers
follow from the seed and the step, so no generator state is saved. A damaged checkpoint is never used: the run resumes from the one
before. A run's result, `adapter/`, is written here too: from the weights in training or from a checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from finetune_local.adapter_format import CONFIG, WEIGHTS, read_adapter, read_config, write_adapter
from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.adapters.identity import AdapterIdentity, read_identity
from finetune_local.spec.base.tokenizer_files import copy_brought
from finetune_local.spec.plan import AdapterPlan
from finetune_local.spec.tuners import Array
from finetune_local.spec.value_head import folded
from finetune_local.system import checksums
from finetune_local.system.errors import AdapterError, DamagedRun
from finetune_local.system.files import discard, written_aside
from finetune_local.system.messages import Message, msg, parts, without_full_stop
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object
from finetune_local.training.run_folder.runs import Run

RESUME = msg("Everything saved earlier is intact. Free some space, then resume.")

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"
FILES = (CONFIG, WEIGHTS, IDENTITY, OPTIMIZER, STATE)
"""The files of every checkpoint, beside its checksums."""

Count = Annotated[int, Field(ge=0, lt=2**63)]
Loss = float | None


@with_config(ConfigDict(strict=True, allow_inf_nan=False, extra="forbid"))
@dataclass
class LoopState:
    """The loop's counters. Totals continue across interruptions; `micro_batch_tokens` may have been halved."""

    step: Count = 0
    micro_batch_tokens: Count = 0
    first_loss: Loss = None
    last_loss: Loss = None
    validation_loss: Loss = None
    best_loss: Loss = None
    best_step: Count = 0
    worse_validations: Count = 0
    trained_tokens: Count = 0
    supervised_tokens: Count = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: Count = 0
    recent_losses: list[float] = field(default_factory=list)


class NewerCheckpoint(DamagedRun):
    """A checkpoint that is intact but was written by a later version of the app."""


@dataclass(frozen=True)
class Loaded:
    """A loaded checkpoint. `summed`: it has checksums, and the files match them."""

    folder: Path
    plan: AdapterPlan
    tensors: dict[str, npt.NDArray[np.float32]]
    optimizer: dict[str, npt.NDArray[np.generic]]
    state: LoopState
    identity: AdapterIdentity | None
    summed: bool


def save(
    folder: Path,
    plan: AdapterPlan,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    optimizer: Mapping[str, npt.NDArray[np.generic]],
    state: LoopState,
    base: str,
    identify: Callable[[Path], None],
) -> Path:
    """Write `folder/step-NNNNNN`, completely or not at all; `identify` adds the base's identity. Raises DiskFailed."""
    from safetensors.numpy import save_file

    target = folder / f"step-{state.step:06d}"

    with written_aside(target, RESUME) as place:
        write_adapter(place, plan, tensors, base)
        identify(place)
        save_file({name: np.require(array, requirements="C") for name, array in optimizer.items()}, place / OPTIMIZER)
        (place / STATE).write_text(json.dumps(dataclasses.asdict(state), indent=1) + "\n", "utf-8")
        checksums.write(place)
    return target


def load(folder: Path) -> Loaded:
    """Read a checkpoint. Raises DamagedRun, whose message completes a sentence, if it is not as save() wrote it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    state = examine(folder)
    summed = checksums.read(folder) is not None
    try:
        plan, tensors = read_adapter(folder, summed=summed)
        optimizer = dict(load_file(folder / OPTIMIZER))
        identity = read_identity(folder)
    except AdapterError as error:
        raise DamagedRun(_without_advice(error)) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedRun(msg("{file} cannot be read ({error})", file=OPTIMIZER, error=error)) from error
    return Loaded(folder, plan, tensors, optimizer, state, identity, summed)


def examine(folder: Path) -> LoopState:
    """The counters of an intact checkpoint; its files are compared with their checksums, if it has any, but not loaded.

    Raises DamagedRun, whose message completes a sentence.
    """
    if not folder.is_dir():
        raise DamagedRun(msg("it is not a folder"))
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise DamagedRun(
            msg("it is empty") if len(missing) == len(FILES) else msg("{name} is missing", name=missing[0])
        )
    if problem := checksums.problem(folder, FILES):
        raise DamagedRun(problem)
    return _state(folder)


def every(folder: Path) -> list[Path]:
    """All paths named like a checkpoint, oldest first. Sorted by number: as text, a seven-digit step sorts before a six-digit one."""
    found = [place for place in folder.glob("step-*") if _number(place) is not None]
    return sorted(found, key=lambda place: _number(place) or 0)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, intact or not; None if there is none."""
    found = [place for place in every(folder) if place.is_dir()]
    return found[-1] if found else None


def counters(folder: Path) -> LoopState:
    """The counters of the newest checkpoint whose counters can be read; those of a new run if none can."""
    for place in reversed(every(folder)):
        try:
            return _state(place)
        except DamagedRun:
            continue
    return LoopState()


def prune(folder: Path, keep: int, best_step: int) -> None:
    """Remove all checkpoints but the newest `keep` and the best one."""
    found = [place for place in every(folder) if place.is_dir()]
    for old in found[: max(0, len(found) - keep)]:
        if _number(old) != best_step:
            discard(old)


def move_to_damaged(place: Path, run_folder: Path) -> Path:
    """Move an unusable checkpoint to the folder `damaged` in the run folder; returns its new path.

    It is not moved to the trash, because a newer version of the app may still be able to use it.
    """
    folder, number = run_folder / "damaged", 1
    folder.mkdir(exist_ok=True)
    while (target := folder / (place.name if number == 1 else f"{place.name}-{number}")).exists():
        number += 1
    return place.rename(target)


def _number(place: Path) -> int | None:
    digits = place.name.removeprefix("step-")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else None


def _state(folder: Path) -> LoopState:
    try:
        values = read_json_object(folder / STATE)
        unknown = sorted(set(values) - {one.name for one in dataclasses.fields(LoopState)})
        if unknown:
            raise NewerCheckpoint(
                msg(
                    "it was written by a newer version ({state} has '{unknown}'): update to use it",
                    state=STATE,
                    unknown=unknown[0],
                )
            )
        state = _states().validate_json(json.dumps(values))
    except (ForeignTextError, OSError) as error:
        raise DamagedRun(msg("{file} cannot be read ({error})", file=STATE, error=error)) from error
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise DamagedRun(
            msg(
                "{state} is invalid: the value of {name} is {value}",
                state=STATE,
                name=at,
                value=f"{first['input']!r:.60}",
            )
        ) from error
    if state.step != _number(folder) or state.best_step > state.step:
        raise DamagedRun(
            msg(
                "{state} says step {step}, and best step {best_step}",
                state=STATE,
                step=state.step,
                best_step=state.best_step,
            )
        )
    return state


@cache
def _states() -> TypeAdapter[LoopState]:
    return TypeAdapter(LoopState)


def _without_advice(error: AdapterError) -> Message:
    """An adapter error's reason alone: its advice is for adapters from other sources, not for checkpoints."""
    return without_full_stop(parts(error.message)[0])


def publish(
    run: Run, plan: AdapterPlan, tensors: Mapping[str, Array], base: str, identify: Callable[[Path], None]
) -> None:
    """Replace the run's `adapter/`: tensors folded for inference, the tokenizer's files and the base's identity. Raises DiskFailed."""
    with written_aside(run.adapter, RESUME) as place:
        new_plan, made = folded(plan, tensors)
        write_adapter(place, new_plan, made, base)
        copy_brought(run.tokenizer, place)
        identify(place)
        checksums.write(place)


def publish_checkpoint(run: Run, source: Path, plan: AdapterPlan | None = None, *, summed: bool = False) -> None:
    """Publish a checkpoint's adapter without a model in memory. `summed`: its files have been checked against their checksums.

    Raises AdapterError if the checkpoint cannot be used, DiskFailed.
    """
    read, tensors = read_adapter(source, summed=summed)
    base = str(read_config(source).get("base_model_name_or_path") or "")
    publish(run, plan or read, tensors, base, lambda place: _copy_identity(source, place))


def _copy_identity(source: Path, place: Path) -> None:
    if (source / IDENTITY).is_file():
        shutil.copyfile(source / IDENTITY, place / IDENTITY)
