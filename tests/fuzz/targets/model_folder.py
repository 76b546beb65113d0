"""Wrong model folders, looked at as `models`, `models info` and a run's beginning look at them; nothing is loaded."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from finetune_local.models.folder import ModelFolder
from finetune_local.models.memory.estimate import facts_of
from fuzz.model_folders import prepare as prepare_folders
from fuzz.model_folders import wrong_folder

COUNTS = (250, 40_000)


def prepare(folder: Path) -> Any:
    """Good models to change."""
    return prepare_folders(folder)


def attempt(prepared: Any, draw: random.Random, folder: Path) -> None:
    """Everything that is known without loading."""
    model = ModelFolder.open(wrong_folder(prepared, draw, folder))
    assert model.blocks and model.hidden_size and model.vocabulary and model.context_length and model.family
    assert isinstance(model.tied, bool) and model.parameters >= 0 and model.info().weights
    model.chat_template()
    for name in list(model.weights())[:3]:
        model.read(name)
    model.check_tokens()
    model.identity()
    facts_of(model)
    model.stretched(2.0).identity()
