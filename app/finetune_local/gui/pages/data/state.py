"""What the Data page remembers."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_local.gui.shell.state import State


@dataclass(eq=False)
class DataState(State, prefix="data_"):
    """The position in the table of rows."""

    first: int = 0
    """The first row of the table's page."""
    row: int = 0
    """The row whose tokens are shown."""
