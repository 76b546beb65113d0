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
    """How to evaluate: on the rows that the adapter's run held out, or on those of a file."""

    rows: Literal["run", "file"] = "run"
    file: str = ""
    few_shot: int = 3
    metric: str = DEFAULT
    limit: int | None = None


@dataclass(frozen=True)
class RowsLook:
    """Which rows of a result are listed, sorted by what, and the page of the list. `metric` "" is the one of the verdict."""

    which: Which = "all"
    metric: str = ""
    page: int = 0


@dataclass(frozen=True)
class VoteLook:
    """Whether the window is voting, against what, and whether the count is shown."""

    on: bool = False
    against: Other = "base"
    revealed: bool = False


@dataclass(eq=False)
class EvaluateState(State, prefix="evaluate_"):
    """The form, the evaluations that run, and how a result is shown. The chosen adapter and evaluation are in Shared."""

    form: EvaluateForm = field(default_factory=EvaluateForm)
    opened_for: str | None = stored("evaluate_for", None)
    """The adapter that was chosen when the evaluation was opened: choosing another one closes it."""
    jobs: tuple[str, ...] = ()
    """Evaluations that this window started and has not seen end."""
    rows: RowsLook = field(default_factory=RowsLook)
    vote: VoteLook = field(default_factory=VoteLook)
