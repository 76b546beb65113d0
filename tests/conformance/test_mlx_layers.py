"""Wrapped modules and adapter layers of the MLX backend, the modules and weights it finds, and gradients through checkpointed blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import ModelError
from mlx_made import PLAN, attached, know, scaling
from mlx_tools import IDS, MLX, assert_same, far, ready, train
from tasks import plan_of
from tiny import tiny_model

MLP, GATE = "model.layers.1.mlp", "model.layers.1.mlp.gate_proj"


@pytest.mark.parametrize("order", [(MLP, GATE), (GATE, MLP)])
def test_wrapped_modules_nest_in_any_order(tiny: Path, monkeypatch: pytest.MonkeyPatch, order: tuple[str, str]) -> None:
    know(monkeypatch, {"x": [2.0], "y": [0.5]}, scaling({order[0]: "x", order[1]: "y"}))
    session = MLX.load(tiny, "fp32", "cpu")
    model, before = session.model, session.logits(IDS)  # type: ignore[attr-defined]
    mlp = model.module.model.layers[1].mlp
    gate = mlp.gate_proj
    session.attach("m", PLAN, 1)
    outer, inner = model.place_of(MLP).get(), model.place_of(GATE).get()
    assert (type(outer).__name__, type(inner).__name__) == ("WrappedModule", "WrappedModule")
    assert (outer.base, inner.base) == (mlp, gate) and outer.gate_proj is inner and inner.weight is gate.weight
    assert not hasattr(outer, "no_such_thing")
    changed = session.logits(IDS)
    # LoRA lands inside and outside of it as well, and each computes alone.
    session.attach("lora", plan_of(tiny), 3, {n: t + 0.01 for n, t in _lora(tiny).items()})
    lora = session.logits(IDS)
    session.activate("m")
    np.testing.assert_array_equal(session.logits(IDS), changed)
    session.detach("m")
    assert model.place_of(MLP).get() is mlp
    session.activate("lora")
    np.testing.assert_array_equal(session.logits(IDS), lora)
    session.detach("lora")
    np.testing.assert_array_equal(session.logits(IDS), before)
    assert mlp.gate_proj is gate
    by_hand = MLX.load(tiny, "fp32", "cpu")
    block = by_hand.model.module.model.layers[1].mlp  # type: ignore[attr-defined]
    scales = dict(zip(order, (2.0, 0.5), strict=True))
    block.gate_proj.weight = block.gate_proj.weight * scales[GATE]
    block.down_proj.weight = block.down_proj.weight * scales[MLP]
    np.testing.assert_allclose(changed, by_hand.logits(IDS), atol=1e-4)


def _lora(folder: Path) -> dict[str, np.ndarray]:
    session = MLX.load(folder, "fp32", "cpu")
    session.attach("a", plan_of(folder), 1)
    return session.tensors("a")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text"])
def test_every_module_of_the_folder_is_found(tmp_path: Path, family: str) -> None:
    folder = tiny_model(tmp_path, family)
    model = MLX.load(folder, "fp32", "cpu").model  # type: ignore[attr-defined]
    body = model.module.model
    expected = {
        "model.embed_tokens": body.embed_tokens,
        "model.layers.1.self_attn": body.layers[1].self_attn,
        "model.layers.1.self_attn.q_proj": body.layers[1].self_attn.q_proj,
        "model.layers.0": body.layers[0],
        "model.layers.0.input_layernorm": body.layers[0].input_layernorm,
        "model.norm": body.norm,
    }
    for name, module in expected.items():
        assert model.place_of(name).get() is module, name
    for name in ("model.layers.2", "model.layers.1.attention", "layers.1", "model.layers.1.self"):
        with pytest.raises(ModelError, match=f"no module called {name} under MLX"):
            model.place_of(name)


@pytest.mark.parametrize("where", ["blocks", "in and out", "whole block"])
def test_a_tensor_that_blocks_share_gets_all_its_gradient_when_blocks_are_checkpointed(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    paths = {"model.layers.0.mlp": "s", "model.layers.1.self_attn": "s", "model.layers.1.mlp.down_proj": "layers.1.t"}
    if where == "in and out":
        paths |= {"model.norm": "s", "model.embed_tokens": "layers.1.t"}
    if where == "whole block":
        paths = {"model.layers.0": "s", "model.layers.1": "s", "model.layers.1.mlp": "layers.1.t"}
    know(monkeypatch, {"s": np.ones(64), "layers.1.t": np.ones(1)}, scaling(paths))
    plain, again = attached(tiny), attached(tiny, {"gradient_checkpointing": True})
    one, other = train(plain, 3), train(again, 3)
    np.testing.assert_allclose(other, one, atol=1e-5)
    assert far(plain.tensors("m"), again.tensors("m")) < 1e-5
    assert np.abs(plain.tensors("m")["s"] - 1).min() > 1e-4


@pytest.mark.parametrize("precision", ["fp32", "4-bit"])
def test_a_weight_is_the_bare_bases_as_it_is_computed_with(tiny: Path, precision: Any) -> None:
    import mlx.core as mx

    session = MLX.load(tiny, precision, "cpu")
    layer = session.model.module.model.layers[0].mlp.up_proj  # type: ignore[attr-defined]
    name = "model.layers.0.mlp.up_proj"
    x = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    expected = np.array(layer(mx.array(x)))
    session.attach("a", plan_of(tiny), 1)
    own = session.weight(name + ".weight")
    assert own.dtype == np.float32
    np.testing.assert_allclose(x @ own.T, expected, atol=1e-4)
    assert session._active == {"a": 1.0}  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="no weight called nothing"):
        session.weight("nothing")


def test_a_weight_is_the_bases_while_all_weights_are_trained(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny_model(tmp_path)
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"]  # tied, but stored
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    session = ready(folder, "full")
    train(session, 2)
    shown = session.logits(IDS)
    assert_same({name: session.weight(name) for name in stored}, stored)
    np.testing.assert_array_equal(session.logits(IDS), shown)


def test_tensors_that_are_made_when_asked_for_are_asked_for_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = MLX.load(tiny, "fp32", "cpu")
    asked: list[str] = []
    weight = session.weight
    monkeypatch.setattr(session, "weight", lambda name: (asked.append(name), weight(name))[1])
    session.attach("a", plan_of(tiny, "full"), 1)
    assert sorted(asked) == sorted(ModelFolder.open(tiny).weights())
