"""Wrong model folders that open, loaded by both backends: a sentence, or finite logits that are alike."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.backend import backends
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import UserError
from fuzz.model_folders import prepare as prepare_folders
from fuzz.model_folders import wrong_folder

COUNTS = (40, 4_000)
IDS = [3, 50, 7, 120]


def prepare(folder: Path) -> Any:
    """Good models to change; the frameworks are imported here, not within an attempt's time."""
    made = prepare_folders(folder)
    usable = [backend for backend in backends().values() if backend.missing() is None]
    for backend in usable:
        backend.load(made[0], "fp32", "cpu").logits(IDS)
    return made, usable


def attempt(prepared: Any, draw: random.Random, folder: Path) -> None:
    """Open, load, compute."""
    made, usable = prepared
    model = ModelFolder.open(wrong_folder(made, draw, folder))
    answers = []
    for backend in usable:
        try:
            answers.append((backend.name, backend.load(model.path, "fp32", "cpu").logits(IDS)))
        except UserError as error:
            assert str(error)
    # Numbers of 1e38 are finite, and what is computed from them is not.
    if not any(np.abs(model.read(name)).max(initial=0) > 1e12 for name in model.weights()):
        for name, answer in answers:
            assert np.isfinite(answer).all(), f"{name} computes NaN from it"
    if len(answers) == 2:
        (_, one), (_, other) = answers
        rows = min(one.shape[-1], other.shape[-1])
        assert np.allclose(one[..., :rows], other[..., :rows], atol=1e-2, rtol=1e-2, equal_nan=True), (
            "the backends do not agree"
        )
