"""A toy model ready to chat, with two adapters loaded."""

from pathlib import Path

import pytest

from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.inference.engine import Opened
from finetune_local.models.folder import ModelFolder
from finetune_local.system import paths
from made import made_adapter
from toy_session import ToySession


@pytest.fixture
def opened(tiny: Path, home: paths.Home) -> Opened:
    tokenizer = Tokenizer.load(tiny)
    session = ToySession(tokenizer.vocabulary_size)
    opened = Opened(home, ModelFolder.open(tiny), session, "toy")  # type: ignore[arg-type]
    for number, name in enumerate(("formal", "诗人")):
        made_adapter(tiny, home.adapters / name, seed=number)
    return opened
