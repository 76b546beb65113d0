"""What an adapter brings beside its weights: see adapters/brings.py. Values: folder."""

from __future__ import annotations

from pathlib import Path

from finetune_local.adapters.brings import brings
from finetune_local.runtime.rpc import Call
from finetune_local.system.paths import Home


def answer(call: Call, home: Home) -> list[str]:
    """The sentences. Raises AdapterError, ModelError."""
    return brings(Path(str(call.values["folder"])), home)
