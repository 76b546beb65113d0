"""What a window's pages hand to each other: the page in view, the chosen model and data, the run being set up, what is open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_local.gui.shell.state import State, kept
from finetune_local.spec.run import DataSettings
from finetune_local.training.run_folder.forecast import DataFacts

RunsView = Literal["list", "run", "compare"]


@dataclass(eq=False)
class Shared(State):
    """One window's. Empty texts and None: nothing was chosen."""

    page: str = ""
    """The page in view."""
    model: str = ""
    """The base model to train and to chat with."""
    data: DataSettings = field(default_factory=DataSettings)
    """The data to train on; without files nothing is chosen."""
    data_facts: DataFacts | None = None
    """What is known of this data."""

    method: str = ""
    goal: str = ""
    form: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the run being set up, by dotted path, as they were typed."""
    run_name: str = ""
    made_from: str = ""
    """The run whose settings were taken over."""
    setting_up: bool = False
    """Whether a run is being set up though another is training."""
    run: str = ""
    """The run that is watched on the Train page."""

    adapter: str | None = None
    """The adapter to evaluate or export; "" is the base model alone."""
    adapters: tuple[str, ...] = ()
    """The adapters that answer in the chat."""
    evaluation: str = ""
    """The evaluation that is shown."""
    runs_view: RunsView = "list"
    opened_run: str = kept("runs_shown", "")
    """The run that is open on the Runs page."""
    opened_adapter: str = kept("adapters_shown", "")
    """The adapter that is open on the Adapters page."""

    def rename(self, old: str, new: str) -> None:
        """A run or an adapter has another name: wherever it is chosen, it stays chosen."""
        self.run = new if self.run == old else self.run
        self.adapter = new if self.adapter == old else self.adapter
        self.opened_run = new if self.opened_run == old else self.opened_run
        self.opened_adapter = new if self.opened_adapter == old else self.opened_adapter
        self.adapters = tuple(new if name == old else name for name in self.adapters)
