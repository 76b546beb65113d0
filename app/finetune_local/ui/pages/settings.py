"""Settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_local.ui import parts

if TYPE_CHECKING:
    from finetune_local.ui.context import Context
    from finetune_local.ui.windows import Window

TITLE, ORDER = "nav.settings", 90


def build(context: Context) -> None:
    """See main.py."""
    view = parts.view()

    def show(_window: Window) -> Any:
        return parts.header("Settings", "hello")

    context.on_show("settings", show, view)
