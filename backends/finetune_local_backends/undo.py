"""A step that fails changes nothing: what both backends' undo.py have in common."""

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
"""Bytes of copies that are kept of anything that is trained; of more only where an eighth of the free memory holds them."""

Tracked = dict[str, npt.NDArray[np.generic]]


class Undo(Protocol):
    """What was trained and what its optimizers and trackers hold, as they were when it was made."""

    def put_back(self) -> None:
        """Make everything as it was, bit for bit, and what is derived from it too."""
        ...


@contextmanager
def all_or_nothing(undo: Undo | None) -> Iterator[None]:
    """Around the writes of a step: where one of them fails, for whatever reason, those before it are taken back.

    Without an undo the error becomes a RunError, which nobody answers by trying the step again: the run ends, and goes on from
    its last checkpoint. So does it where taking back fails.
    """
    try:
        yield
    except BaseException as error:
        if undo is None:
            raise _lost(error) from error
        try:
            undo.put_back()
        except BaseException as second:  # noqa: BLE001 - a second Ctrl-C too: nothing may go on with half a step
            raise _lost(second) from error
        raise


def affordable(size: int, free: int) -> bool:
    """Whether copies of so many bytes are kept: adapters' always, those of a whole model only where there is much room."""
    return size <= max(ALWAYS, free // 8)


def tracked(tracker: Tracker | None) -> Tracked | None:
    """A copy of what a family remembers between steps."""
    return None if tracker is None else {key: np.array(value) for key, value in tracker.state().items()}


def track_again(tracker: Tracker | None, kept: Mapping[str, npt.NDArray[np.generic]] | None) -> None:
    """Put it back."""
    if tracker is not None and kept is not None:
        tracker.restore({key: np.array(value) for key, value in kept.items()})


def _lost(error: BaseException) -> RunError:
    said = str(error) or type(error).__name__
    return RunError(
        msg(
            "a step failed after a part of its weights had been written ({error}), so this process cannot go on. "
            "Resume the run: it goes on from its last checkpoint, and loses the steps since.",
            error=said,
        )
    )
