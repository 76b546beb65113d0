"""What the Adapters page remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from finetune_local.gui.shell.state import State
from finetune_local.gui.widgets.lists import Place

Editing = Literal["", "import", "name", "note"]


@dataclass(eq=False)
class AdaptersState(State, prefix="adapters_"):
    """The place in the list, and the form that is open. The adapter that is open is in Shared."""

    list: Place = field(default_factory=lambda: Place("created_time", down=True))
    editing: Editing = ""
    """What is being typed: the folder to import, or the open adapter's name or note."""
