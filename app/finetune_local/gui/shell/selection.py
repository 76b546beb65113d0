"""The run that a window is set up for, as several pages need it: its base model, and taking over the settings of another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetune_local.models.install import installed
from finetune_local.spec.run import DEFAULT_MODEL, DataSettings
from finetune_local.system.fields import parse
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.forecast import facts_of_prepared
from finetune_local.training.run_folder.settings import settings_of

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window
    from finetune_local.system.paths import Home
    from finetune_local.training.run_folder.runs import Run


def chosen_model(context: Context, window: Window) -> str:
    """The base model that the window trains: the chosen one, else the default, else the first that is installed."""
    if window.shared.model:
        return window.shared.model
    known = installed(context.home.models)
    return DEFAULT_MODEL if DEFAULT_MODEL in known or not known else known[0]


def has_trained(home: Home) -> bool:
    """Whether any run has made an adapter."""
    return any(run.adapter.exists() for run in runs.every(home))


def set_up_like(window: Window, run: Run, changed: Mapping[str, Any] | None = None) -> None:
    """Set up a run with the settings of another, some of them changed. Raises SpecError."""
    found, facts = settings_of(run), facts_of_prepared(run.data)
    shared = window.shared
    shared.reset("run", "run_name")
    shared.setting_up, shared.made_from = True, run.name
    shared.model, shared.data_facts = found.model, facts
    shared.data = parse(DataSettings, found.data, f"run '{run.name}'")
    shared.method, shared.goal = found.method, found.goal
    shared.form = {**found.rest, **(changed or {})}
