"""What this machine has: as `doctor --json` prints it."""

from __future__ import annotations

from typing import Any

from finetune_local.diagnose import examine
from finetune_local.paths import Home
from finetune_local.service import Call


def answer(call: Call, home: Home) -> dict[str, Any]:
    """See diagnose.examine."""
    return examine(str(call.values.get("backend", "auto")), home)
