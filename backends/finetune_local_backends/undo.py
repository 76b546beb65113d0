"""A step that fails changes nothing: what both backends' undo.py share."""

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
"""Copies of up to so many bytes are always made; larger ones only where they take at most an eighth of the free memory."""

Tracked = dict[str, npt.NDArray[np.generic]]


class Undo(Protocol):
    """Trained parameters and the states of their optimizers and trackers, as they were when this was made."""

    def put_back(self) -> None:
        """Restore everything bit for bit, and what is derived from it."""
        ...


@contextmanager
def all_or_nothing(undo: Undo | None) -> Iterator[None]:
    """Around the writes of a step: where one of them fails, for whatever reason, those before it are undone.

    Without an undo the error becomes a RunError, after which the step is not tried again: the run ends, and is resumed from its
    last checkpoint. The same holds where undoing fails.
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
    """Whether copies of so many bytes are made: an adapter's always, a whole model's only where there is much room."""
    return size <= max(ALWAYS, free // 8)


def tracked(tracker: Tracker | None) -> Tracked | None:
    """A copy of what a tuner remembers between steps."""
    return None if tracker is None else {key: np.array(value) for key, value in tracker.state().items()}


def track_again(tracker: Tracker | None, kept: Mapping[str, npt.NDArray[np.generic]] | None) -> None:
    """Restore it."""
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
