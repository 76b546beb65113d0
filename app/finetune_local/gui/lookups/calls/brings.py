"""What an adapter brings beside its weights: see adapters/attach.py. Values: folder."""

from __future__ import annotations

from pathlib import Path

from finetune_local.adapters.attach import brings
from finetune_local.runtime.rpc import RpcRequest
from finetune_local.system.paths import Home


def answer(request: RpcRequest, home: Home) -> list[str]:
    """The sentences. Raises AdapterError, ModelError."""
    return brings(Path(str(request.values["folder"])), home)
