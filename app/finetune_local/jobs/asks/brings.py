"""What an adapter brings beside its weights: see adapters/brings.py. Values: folder."""

from __future__ import annotations

from pathlib import Path

from finetune_local.adapters.brings import brings
from finetune_local.paths import Home
from finetune_local.service import Call


def answer(call: Call, home: Home) -> list[str]:
    """The sentences. Raises AdapterError, ModelError."""
    return brings(Path(str(call.values["folder"])), home)
