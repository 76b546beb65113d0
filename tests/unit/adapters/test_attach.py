"""An adapter is proven live when it is loaded for use."""

import json
from pathlib import Path

import numpy as np
import pytest

from finetune_local.adapters.attach import attach
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.batch import Floats
from finetune_local.system.errors import AdapterError
from made import made_adapter
from tiny import tiny_model
from toy_session import ToySession


@pytest.fixture
def model(tiny: Path) -> ModelFolder:
    return ModelFolder.open(tiny)


@pytest.fixture
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(tiny)


def test_a_live_adapter_is_active_afterwards(model: ModelFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    session, notes = ToySession(400), list[str]()
    count = attach(session, model, tokenizer, made_adapter(model.path, tmp_path / "a"), "a", notes.append)
    assert session.active == "a" and count > 1000 and not notes


def test_a_dead_adapter_is_refused_and_forgotten(model: ModelFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    session = ToySession(400)
    with pytest.raises(AdapterError, match="changes nothing"):
        attach(session, model, tokenizer, made_adapter(model.path, tmp_path / "a", dead=True), "a")
    assert session.adapters() == [] and session.active is None


def test_an_adapter_that_gives_no_numbers_is_refused(model: ModelFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def rule(adapter: str | None, _ids: object) -> Floats:
        return np.full(400, np.nan if adapter else 0.0, np.float32)

    session = ToySession(400, rule)
    with pytest.raises(AdapterError, match="NaN"):
        attach(session, model, tokenizer, made_adapter(model.path, tmp_path / "a"), "a")
    assert session.adapters() == []


def test_plain_peft_is_taken_with_a_note(model: ModelFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    notes: list[str] = []
    folder = made_adapter(model.path, tmp_path / "朋友的", plain=True)
    attach(ToySession(400), model, tokenizer, folder, "a", notes.append)
    assert len(notes) == 1 and "朋友的" in notes[0]
    config = folder / "adapter_config.json"
    values = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**values, "base_model_name_or_path": "some/base"}), "utf-8")
    attach(ToySession(400), model, tokenizer, folder, "a", notes.append)
    assert "trained on 'some/base'" in notes[1] and "does not name" not in notes[1]
    (folder / "adapter_model.safetensors").write_bytes(b"<html>")
    with pytest.raises(AdapterError, match="cannot be read"):
        attach(ToySession(400), model, tokenizer, folder, "a", notes.append)
    assert len(notes) == 2  # nothing is said of shapes that were not seen


@pytest.mark.parametrize("plain", [True, False])
def test_another_base_is_refused_before_anything_is_attached(
    model: ModelFolder, tokenizer: Tokenizer, tmp_path: Path, plain: bool
) -> None:
    folder = made_adapter(tiny_model(tmp_path / "deeper", layers=3), tmp_path / "a", plain=plain)
    session = ToySession(400)
    with pytest.raises(AdapterError, match="layers.2" if plain else "its config"):
        attach(session, model, tokenizer, folder, "a")
    assert session.adapters() == []
