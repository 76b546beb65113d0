"""What the Model page remembers."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_local.gui.shell.state import State


@dataclass(eq=False)
class ModelState(State, prefix="model_"):
    """What is expanded on the page, and the downloads whose models will be selected."""

    details: str = ""
    """The model whose details are shown."""
    removing: str = ""
    """The model whose removal must be confirmed."""
    search: str = ""
    """The words of the last search on the hub."""
    waiting: tuple[str, ...] = ()
    """Downloads that this window started; each model is selected once it is installed."""
