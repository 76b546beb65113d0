"""What a window has selected that several pages use: the base model, the run, the adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finetune_local.models.install import installed
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.training.run_folder.again import settings_of
from finetune_local.training.run_folder.forecast import facts_of_prepared

if TYPE_CHECKING:
    from finetune_local.gui.shell.context import Context
    from finetune_local.gui.shell.windows import Window
    from finetune_local.training.run_folder.runs import Run


def chosen_model(context: Context, window: Window) -> str:
    """The base this window trains: the one that was picked, else the small default."""
    picked = window["model"]
    if picked:
        return str(picked)
    known = installed(context.home.models)
    return DEFAULT_MODEL if DEFAULT_MODEL in known or not known else known[0]


def draft_of(run: Run, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a window has to remember to set up a run like another, with some settings changed. Raises SpecError."""
    found, rows = settings_of(run), facts_of_prepared(run.data)
    return {
        "run": None,
        "setting_up": True,
        "run_name": None,
        "made_from": run.name,
        "model": found.model,
        "data": found.data or None,
        "data_facts": asdict(rows) if rows is not None else None,
        "method": found.method,
        "goal": found.goal,
        "form": {**found.rest, **(changed or {})},
    }


def follow_rename(window: Window, old: str, new: str) -> None:
    """A run and its adapter were renamed: select them under the new name."""
    changed: dict[str, Any] = {
        key: new for key in ("run", "adapter", "runs_shown", "adapters_shown") if window[key] == old
    }
    if old in (window["adapters"] or ()):
        changed["adapters"] = [new if name == old else name for name in window["adapters"]]
    window.set(**changed)
