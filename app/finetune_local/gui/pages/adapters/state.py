"""What the Adapters page remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from finetune_local.gui.shell.state import State
from finetune_local.gui.widgets.lists import Place

Editing = Literal["", "import", "name", "note"]


@dataclass(eq=False)
class AdaptersState(State, prefix="adapters_"):
    """The position in the list, and the open form. The open adapter is in Shared."""

    list: Place = field(default_factory=lambda: Place("created_time", down=True))
    editing: Editing = ""
    """The form that is open: the import, or the open adapter's name or note."""
