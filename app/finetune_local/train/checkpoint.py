"""Checkpoints: an adapter folder with the optimizer's state and the loop's counters beside it.

A checkpoint is a complete adapter folder, so that one can be chatted with. Restoring it puts the run back exactly:
the order of the data and the random numbers follow from the seed and the step, so no generator state is kept.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune_local.errors import AdapterError
from finetune_local.files import written_aside
from finetune_local.layout import read_adapter, write_adapter
from finetune_local.spec.plan import AdapterPlan

RESUME = "What was saved before is intact. Make room, then resume."

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


@dataclass
class LoopState:
    """The loop's counters. Sums go on across interruptions; `micro_batch_tokens` may have been halved."""

    step: int = 0
    micro_batch_tokens: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    validation_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    worse_validations: int = 0
    trained_tokens: int = 0
    supervised_tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    recent_losses: list[float] = field(default_factory=list)


def save(
    folder: Path,
    plan: AdapterPlan,
    tensors: Mapping[str, npt.NDArray[np.float32]],
    optimizer: Mapping[str, npt.NDArray[np.generic]],
    state: LoopState,
    base: str,
    identify: Callable[[Path], None],
) -> Path:
    """Write `folder/step-NNNNNN`; `identify` adds the base's identity. Raises DiskFull, with nothing half-written."""
    from safetensors.numpy import save_file

    target = folder / f"step-{state.step:06d}"

    with written_aside(target, RESUME) as place:
        write_adapter(place, plan, tensors, base)
        identify(place)
        save_file({name: np.require(array, requirements="C") for name, array in optimizer.items()}, place / OPTIMIZER)
        (place / STATE).write_text(json.dumps(dataclasses.asdict(state), indent=1) + "\n", "utf-8")
    return target


def load(
    folder: Path,
) -> tuple[AdapterPlan, dict[str, npt.NDArray[np.float32]], dict[str, npt.NDArray[np.generic]], LoopState]:
    """What save() wrote. Raises AdapterError where a file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    plan, tensors = read_adapter(folder)
    try:
        optimizer = dict(load_file(folder / OPTIMIZER))
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    return plan, tensors, optimizer, _state(folder)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    found = _every(folder)
    return found[-1] if found else None


def counters(folder: Path) -> LoopState:
    """The counters of the newest checkpoint without its weights; those of a beginning where there is none."""
    newest = latest(folder)
    return LoopState() if newest is None else _state(newest)


def prune(folder: Path, keep: int, best_step: int) -> None:
    """Remove all but the newest `keep` and the best one."""
    found = _every(folder)
    for old in found[: max(0, len(found) - keep)]:
        if old.name != f"step-{best_step:06d}":
            shutil.rmtree(old)


def _every(folder: Path) -> list[Path]:
    """All checkpoints, the oldest first; by number, as a name with a seventh digit sorts before one with six."""
    found = [place for place in folder.glob("step-*") if place.name[5:].isdecimal()]
    return sorted(found, key=lambda place: int(place.name[5:]))


def _state(folder: Path) -> LoopState:
    try:
        return LoopState(**json.loads((folder / STATE).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> AdapterError:
    return AdapterError(f"the checkpoint {folder} is damaged ({error}). Delete it to resume from the one before.")
