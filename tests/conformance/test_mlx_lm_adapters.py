"""An adapter of mlx-lm's own trainer, imported: it computes what mlx-lm computes with it, on both backends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.adapters import manage
from finetune_local.adapters.attach import attach
from finetune_local.adapters.mlx_lm import MLX_WEIGHTS
from finetune_local.backend import Backend
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import AdapterError
from finetune_local.system.paths import Home

mx = pytest.importorskip("mlx.core")
IDS = [5, 9, 17, 33, 4, 8, 60, 2]


def made(base: Path, folder: Path, kind: str, keys: tuple[str, ...]) -> np.ndarray:
    """Write an adapter as mlx_lm.lora does; the logits of mlx-lm with it."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
    from mlx_lm.utils import load_model

    values = json.loads((base / "config.json").read_text("utf-8"))
    theta = {"rope_theta": values["rope_parameters"]["rope_theta"]}  # mlx-lm reads it at its old place only
    model, _ = load_model(base, model_config=theta)
    told: dict[str, Any] = {"rank": 4, "scale": 5.0, "dropout": 0.0, "keys": list(keys)}
    linear_to_lora_layers(model, 1, told, use_dora=kind == "dora")
    draw = np.random.default_rng(0)
    parts = {name: value for name, value in tree_flatten(model.parameters()) if "lora_" in name or name.endswith(".m")}
    new = {
        n: mx.array(draw.normal(0, 0.3, v.shape).astype(np.float32)) if "lora_" in n else v for n, v in parts.items()
    }
    folder.mkdir()
    mx.save_safetensors(str(folder / MLX_WEIGHTS), new)
    config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": told, "model": base.name, "batch_size": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    fresh, _ = load_model(base, model_config=theta)
    return np.array(load_adapters(fresh, str(folder))(mx.array([IDS]))[0])


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("lora", ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")),
        ("dora", ("self_attn.q_proj", "mlp.up_proj")),
    ],
)
def test_it_computes_what_mlx_lm_computes(
    tiny: Path, home: Home, tmp_path: Path, backend: Backend, kind: str, keys: tuple[str, ...]
) -> None:
    expected = made(tiny, tmp_path / "theirs", kind, keys)
    notes: list[str] = []
    entry = manage.bring_in(tmp_path / "theirs", home, "mine", notes.append)
    assert notes == ["an mlx-lm adapter: it was converted to the equivalent PEFT format."]
    assert not (entry.folder / MLX_WEIGHTS).exists()
    session = backend.load(tiny, "fp32")
    base = session.logits(IDS)
    attach(session, ModelFolder.open(tiny), Tokenizer.load(tiny), entry.folder, "a")
    assert np.abs(session.logits(IDS) - expected).max() < 1e-4 < np.abs(base - expected).max()


def test_given_as_it_is_it_is_called_what_it_is(tiny: Path, tmp_path: Path, backend: Backend) -> None:
    made(tiny, tmp_path / "theirs", "lora", ("self_attn.q_proj",))
    session = backend.load(tiny, "fp32")
    with pytest.raises(AdapterError, match=r"an mlx-lm adapter, .* adapters import"):
        attach(session, ModelFolder.open(tiny), Tokenizer.load(tiny), tmp_path / "theirs", "a")


def test_one_on_the_embedding_is_refused(tiny: Path, home: Home, tmp_path: Path) -> None:
    """Where the head is the embedding, mlx-lm applies it there too, and PEFT does not."""
    made(tiny, tmp_path / "theirs", "lora", ("self_attn.q_proj", "model.embed_tokens"))
    with pytest.raises(AdapterError, match="changes the head, because"):
        manage.bring_in(tmp_path / "theirs", home, "mine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fine_tune_type": "full"}, "of type 'full'"),
        ({"lora_parameters": {"rank": 4, "alpha": 8}}, "'lora_parameters.scale' cannot be used"),
        ({"lora_parameters": {"rank": 4, "scale": float("nan")}}, "finite"),
        ({"lora_parameters": None}, "of type 'lora'"),
        ({"fine_tune_type": "dora"}, "missing, or one too many"),
    ],
)
def test_others_are_refused(home: Home, tiny: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    made(tiny, tmp_path / "theirs", "lora", ("self_attn.q_proj",))
    file = tmp_path / "theirs" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(AdapterError, match=words):
        manage.bring_in(tmp_path / "theirs", home, "mine")
    assert list(home.adapters.iterdir()) == []


def test_experts_are_refused(home: Home, tiny: Path, tmp_path: Path) -> None:
    made(tiny, tmp_path / "theirs", "lora", ("self_attn.q_proj",))
    file = tmp_path / "theirs" / MLX_WEIGHTS
    name = "model.layers.1.mlp.switch_mlp.up_proj"
    mx.save_safetensors(str(file), {f"{name}.lora_a": mx.zeros((2, 4, 8)), f"{name}.lora_b": mx.zeros((2, 8, 4))})
    with pytest.raises(AdapterError, match="adapters of experts"):
        manage.bring_in(tmp_path / "theirs", home, "mine")
