"""A toy that is opened as a model is, whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.inference.engine import Opened
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.batch import Floats
from finetune_local.system import paths
from toy_session import ToySession


@pytest.fixture
def opened(tiny: Path, home: paths.Home) -> Opened:
    """With the adapter the toy says what it was asked to say, with the base "ok" and nothing else."""
    tokenizer = Tokenizer.load(tiny)
    end = tokenizer.eos_id

    header = len(tokenizer.ids("assistant\n"))

    def rule(adapter: str | None, ids: Sequence[int]) -> Floats:
        begun = max(i for i, token in enumerate(ids) if token == 1) + 1 + header  # after the last <|im_start|>
        asked = tokenizer.text(ids[:begun]).rpartition("say ")[2].removesuffix("assistant\n").strip()
        wanted = [*tokenizer.ids(asked if adapter else "ok"), end]
        logits = np.zeros(tokenizer.vocabulary_size, np.float32)
        logits[wanted[min(len(ids) - begun, len(wanted) - 1)]] = 8.0
        return logits

    session = ToySession(tokenizer.vocabulary_size, rule)
    session.loaded["mine"] = 1.0
    opened = Opened(home, ModelFolder.open(tiny), session, "toy")  # type: ignore[arg-type]
    opened.adapters["mine"] = home.root / "nowhere"
    opened.activate("mine")
    return opened
