"""How a run looks wherever it is shown: its status in a word."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_local.ui import parts
from finetune_local.ui.html import Html
from finetune_local.ui.strings import Strings

_KINDS: Mapping[str, str] = {
    "running": "live",
    "finished": "good",
    "stopped": "warn",
    "failed": "bad",
    "interrupted": "warn",
    "damaged": "bad",
}


def status_badge(t: Strings, status: str) -> Html:
    """A run's status as a coloured word."""
    return parts.badge(t(f"runs.status_{status}"), _KINDS.get(status, ""))
