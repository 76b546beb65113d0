"""Offline mode: checked before every lookup and download."""

from __future__ import annotations

from finetune_local.system import preferences
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg


def refuse_offline(what: str) -> None:
    """Raise ModelError if the user prefers to be offline; `what` begins the sentence: "downloading Qwen/Qwen3-0.6B"."""
    if preferences.load().offline:
        raise ModelError(
            msg(
                "{what} needs the network, and this app is set to stay offline. Turn “offline” off in Settings, or "
                "bring the model from another machine: finetune-local models get FOLDER",
                what=what,
            )
        )
