"""What the Model page remembers."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_local.gui.shell.state import State


@dataclass(eq=False)
class ModelState(State, prefix="model_"):
    """What is open on the page, and the downloads whose models are to be chosen."""

    details: str = ""
    """The model whose details are shown."""
    removing: str = ""
    """The model for which the page asks whether to remove it."""
    search: str = ""
    """What was searched for on the hub."""
    waiting: tuple[str, ...] = ()
    """Downloads that this window started: the model is chosen once it is there."""
