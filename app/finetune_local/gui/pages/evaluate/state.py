"""What the Evaluate page remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from finetune_local.evaluation.metrics import DEFAULT
from finetune_local.evaluation.store import Which
from finetune_local.evaluation.votes import Other
from finetune_local.gui.shell.state import State, stored


@dataclass(frozen=True)
class EvaluateForm:
    """How to evaluate: on the held-out rows of the adapter's run, or on the rows of a file."""

    rows: Literal["run", "file"] = "run"
    file: str = ""
    few_shot: int = 3
    metric: str = DEFAULT
    limit: int | None = None


@dataclass(frozen=True)
class RowsLook:
    """Which rows of a result are listed, the metric they are sorted by ("": that of the verdict), and the list's page."""

    which: Which = "all"
    metric: str = ""
    page: int = 0


@dataclass(frozen=True)
class VoteLook:
    """Whether the window is voting, against which condition, and whether the count is shown."""

    on: bool = False
    against: Other = "base"
    revealed: bool = False


@dataclass(eq=False)
class EvaluateState(State, prefix="evaluate_"):
    """The form, this window's evaluations, and the look of a result. The selected adapter and evaluation are in Shared."""

    form: EvaluateForm = field(default_factory=EvaluateForm)
    opened_for: str | None = stored("evaluate_for", None)
    """The adapter that was selected when the evaluation was opened; selecting another one closes it."""
    jobs: tuple[str, ...] = ()
    """Evaluations that this window started and whose end it has not shown."""
    rows: RowsLook = field(default_factory=RowsLook)
    vote: VoteLook = field(default_factory=VoteLook)
