"""Whether the network may be asked at all: the user's wish to be offline stands before every look-up and download."""

from __future__ import annotations

from finetune_local.system import preferences
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg


def refuse_offline(what: str) -> None:
    """Raise ModelError where the user prefers to be offline; `what` begins the sentence: "downloading Qwen/Qwen3-0.6B"."""
    if preferences.load().offline:
        raise ModelError(
            msg(
                "{what} needs the network, and this app is set to stay offline. Turn “offline” off in Settings, or "
                "bring the model from another machine: finetune-local models get FOLDER",
                what=what,
            )
        )
