"""What the Runs page remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from finetune_local.gui.shell.state import State
from finetune_local.gui.widgets.lists import Place
from finetune_local.training.run_folder import watch

Shown = Literal["both", "training", "validation"]


@dataclass(frozen=True)
class Look:
    """How the curves of a comparison are drawn."""

    shown: Shown = "both"
    axis: watch.Axis = "step"
    smoothing: watch.Smoothing = "light"


@dataclass(eq=False)
class RunsState(State, prefix="runs_"):
    """The position in the list, its filters, and the look of a comparison. The open run is in Shared."""

    list: Place = field(default_factory=lambda: Place("changed_time", down=True))
    status: str = ""
    """Only runs with this status are listed; "" lists all."""
    method: str = ""
    """Only runs of this method are listed; "" lists all."""
    editing: bool = False
    """Whether the open run's name is being edited."""
    look: Look = field(default_factory=Look)
