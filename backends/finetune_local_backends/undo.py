"""A step that fails changes nothing: the part of undoing that both backends share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import numpy.typing as npt

from finetune_local.spec.tuners import Tracker
from finetune_local.system.errors import RunError
from finetune_local.system.messages import msg

ALWAYS = 256 << 20
"""Copies up to this size in bytes are always made; larger ones only if they take at most an eighth of the free memory."""

Tracked = dict[str, npt.NDArray[np.generic]]


class Undo(Protocol):
    """A snapshot of trained parameters and of the states of their optimizers and trackers."""

    def put_back(self) -> None:
        """Restore everything bit for bit, including derived values."""
        ...


@contextmanager
def all_or_nothing(undo: Undo | None) -> Iterator[None]:
    """Context of a step's writes: if one of them fails for any reason, the earlier ones are undone.

    Without an undo, or if undoing fails, the error becomes a RunError: the step is not repeated, and the run ends and must be resumed from
    its last checkpoint.
    """
    try:
        yield
    except BaseException as error:
        if undo is None:
            raise _lost(error) from error
        try:
            undo.put_back()
        except BaseException as second:  # noqa: BLE001 - a second Ctrl-C too: no training may continue after half a step
            raise _lost(second) from error
        raise


def affordable(size: int, free: int) -> bool:
    """Whether copies of `size` bytes are made: an adapter's always, a whole model's only if much memory is free."""
    return size <= max(ALWAYS, free // 8)


def tracked(tracker: Tracker | None) -> Tracked | None:
    """A copy of the tuner's state between steps."""
    return None if tracker is None else {key: np.array(value) for key, value in tracker.state().items()}


def track_again(tracker: Tracker | None, kept: Mapping[str, npt.NDArray[np.generic]] | None) -> None:
    """Restore the tuner's state from a copy."""
    if tracker is not None and kept is not None:
        tracker.restore({key: np.array(value) for key, value in kept.items()})


def _lost(error: BaseException) -> RunError:
    reason = str(error) or type(error).__name__
    return RunError(
        msg(
            "a step failed after some of its weights had been written ({error}), so this process cannot "
            "continue. Resume the run: it continues from its last checkpoint and loses only the steps since then.",
            error=reason,
        )
    )
