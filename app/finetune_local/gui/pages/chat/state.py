"""What the Chat page remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_local.gui.shell.state import State, stored

Seen = tuple[str | None, tuple[str, ...]]
"""A conversation and adapters that another page may have selected."""


@dataclass(frozen=True)
class Removed:
    """A conversation that was removed: its key in the trash, and its name."""

    key: str
    name: str


@dataclass(eq=False)
class ChatState(State, prefix="chat_"):
    """The conversation, the settings of answers, and the input. The answering adapters are in Shared."""

    conversation: str = stored("conversation", "")
    """The open conversation; "" is a new one."""
    model: str = ""
    """The base model selected here; "" means the one in Shared."""
    base: bool = True
    """Whether the base answers too."""
    lead: str | None = None
    """The model whose answer the conversation continues with ("" is the base); None if not selected."""
    seen: Seen = (None, ())
    """The conversation and the adapters when the page last took them over from another page."""

    message: str = ""
    """The text in the message box."""
    sent: str = stored("chat_asked", "")
    """The last question sent; it returns to the message box if it cannot be answered."""
    editing: int | None = None
    """The number of the exchange whose question is being edited."""
    examples: int = 0
    """The first held-out question that is suggested."""

    search: str = ""
    renaming: str = ""
    """The conversation whose name is being edited."""
    removed: Removed | None = None
    """The conversation that can be restored at once."""

    settings: bool = False
    """Whether the panel of settings is open."""
    system: str = ""
    """The system prompt."""
    sampling: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Sampling settings as they were typed."""
    backend: str = "auto"
    precision: str = ""
