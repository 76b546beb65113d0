"""Folders whose config.json does not tell the truth: both backends compute what is stored, or both refuse it and say why."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finetune_local.backend import Backend, backends
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.base.weights import PLAIN
from finetune_local.system.errors import FinetuneError, ModelError, UserError
from tiny import tiny_model

WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
IDS = [3, 50, 7, 120]
Tensors = dict[str, np.ndarray]


@pytest.fixture(params=["torch", "mlx"])
def backend(request: pytest.FixtureRequest) -> Backend:
    found = backends()[request.param]
    if reason := found.missing():
        pytest.skip(f"{found.name}: {reason}")
    return found


def change(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")
    return folder


def rewrite(folder: Path, made: Callable[[Tensors], Tensors]) -> Path:
    save_file({n: np.ascontiguousarray(t) for n, t in made(load_file(folder / WEIGHTS)).items()}, folder / WEIGHTS)
    return folder


def renamed(before: str, after: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(before, after, 1): tensor for name, tensor in tensors.items()}


def with_number(name: str, value: float, kind: Any = np.float32) -> Callable[[Tensors], Tensors]:
    def made(tensors: Tensors) -> Tensors:
        array = tensors[name].astype(kind)
        array.reshape(-1)[5] = value
        return {**tensors, name: array}

    return made


def reference(folder: Path, ids: list[int] = IDS) -> np.ndarray:
    """Plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return np.asarray(model(torch.tensor([ids])).logits[0])


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen2"])
def test_a_head_of_its_own_is_computed_with_though_the_config_says_tied(
    backend: Backend, family: str, tmp_path: Path
) -> None:
    folder = change(tiny_model(tmp_path, family, tied=False), tie_word_embeddings=True)
    plain = reference(folder)
    np.testing.assert_allclose(backend.load(folder, "fp32", "cpu").logits(IDS), plain, atol=1e-3)
    tied = rewrite(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]})
    assert np.abs(reference(tied) - plain).max() > 0.1, "the two heads are told apart"
    np.testing.assert_allclose(backend.load(tied, "fp32", "cpu").logits(IDS), reference(tied), atol=1e-3)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text", "mistral"])
def test_heads_of_families_whose_class_has_none(backend: Backend, family: str, tmp_path: Path) -> None:
    """The embedding once more is left out; a head of its own is computed with, or refused."""
    folder = tiny_model(tmp_path / "copy", family, tied=True)
    rewrite(folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"]})
    np.testing.assert_allclose(backend.load(folder, "fp32", "cpu").logits(IDS), reference(folder), atol=1e-3)
    own = change(tiny_model(tmp_path / "own", family, tied=False), tie_word_embeddings=True)
    try:
        got = backend.load(own, "fp32", "cpu").logits(IDS)
    except UserError as error:
        assert backend.name == "mlx" and "it has its own head (lm_head.weight)" in str(error), error
    else:
        np.testing.assert_allclose(got, reference(own), atol=1e-3)


@pytest.mark.parametrize("family", sorted(PLAIN))
def test_what_transformers_itself_saves_is_taken(family: str, tmp_path: Path) -> None:
    """A family's own defaults, wherever its config.json is silent."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if reason := backends()["torch"].missing():
        pytest.skip(reason)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 384,
    }
    more = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_local_experts": 2, "num_experts": 4, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32, "num_experts_per_tok": 2, "num_key_value_heads": 2}  # fmt: skip
    known = AutoConfig.for_model(family).to_dict()
    config = AutoConfig.for_model(family, **sizes, **{name: value for name, value in more.items() if name in known})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model(tmp_path / "tiny") / name, tmp_path / name)
    folder = ModelFolder.open(tmp_path).path
    np.testing.assert_allclose(
        backends()["torch"].load(folder, "fp32", "cpu").logits(IDS), reference(folder), atol=1e-4
    )
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    if raw.pop("head_dim", None) is not None:  # the family's default, as the sizes above do not say any other
        (folder / "config.json").write_text(json.dumps(raw), "utf-8")
        ModelFolder.open(folder)


def test_sizes_of_a_family_that_is_not_known_are_tried(tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if reason := backends()["torch"].missing():
        pytest.skip(reason)
    config = AutoConfig.for_model(
        "deepseek_v3", hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=384, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    backends()["torch"].load(tmp_path, "fp32", "cpu")
    change(tmp_path, num_key_value_heads=2)
    with pytest.raises(ModelError, match="transformers cannot load it: The size of tensor"):
        backends()["torch"].load(tmp_path, "fp32", "cpu")


SCALED: dict[str, dict[str, Any]] = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
    "longrope": {"factor": 4.0, "short_factor": [1.5] * 8, "long_factor": [3.0] * 8, "original_max_position_embeddings": 128},
    "yarn without a cut": {"rope_type": "yarn", "factor": 4.0, "truncate": False, "original_max_position_embeddings": 128},
    "yarn by a factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5, "original_max_position_embeddings": 128},
    "half of it": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("kind", list(SCALED))
def test_scaled_positions_are_computed_or_refused(backend: Backend, kind: str, family: str, tmp_path: Path) -> None:
    values = {"rope_type": kind, "rope_theta": 100_000.0, **SCALED[kind]}
    folder = change(tiny_model(tmp_path, family), rope_parameters=values)
    ids = IDS * 20
    try:
        got = backend.load(ModelFolder.open(folder).path, "fp32", "cpu").logits(ids)
    except UserError as error:
        assert backend.name == "mlx" or kind == "half of it", error
    else:
        np.testing.assert_allclose(got, reference(folder, ids), atol=1e-3)
    if family == "llama" and kind == "llama3":
        backend.load(folder, "fp32", "cpu")  # what MLX computes itself is no weight that is missing


def test_what_is_stored_as_float64_is_read(backend: Backend, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    plain = reference(folder)
    rewrite(folder, lambda t: {n: x.astype(np.float64) for n, x in t.items()})
    np.testing.assert_allclose(backend.load(folder, "fp32", "cpu").logits(IDS), plain, atol=1e-3)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda t: {n: x for n, x in t.items() if n != UP}, rf"1 weights are missing or have the wrong shape; the first is {UP}"),
        (lambda t: {**t, UP: t[UP][:, :-1]}, r"another shape|shape \[128, 63\]"),
        (lambda t: {**t, "model.layers.1.evil.weight": np.ones((2, 2), np.float32)}, r"1 of its tensors do not belong to a llama model"),
        (lambda t: {**t, "score.weight": np.ones((2, 64), np.float32)}, r"would be ignored; the first is score\.weight"),
        (renamed("model.", "model.language_model."), r"named model\.language_model\.…, but a llama model's are named model\.…"),
        (renamed("model.", "transformer."), r"named transformer\.…, but a llama model's are named model\.…"),
        (renamed("model.", "language_model.model."), r"named language_model\.model\.…"),
        (with_number(UP, float("nan")), rf"{UP} has 1 NaN or infinite"),
        (with_number(UP, float("inf")), rf"{UP} has 1 NaN or infinite"),
        (with_number(UP, float("-inf"), np.float16), rf"{UP} has 1 NaN or infinite"),
        (with_number(UP, 1e300, np.float64), rf"{UP} has 1 NaN or infinite"),
        (with_number("model.norm.weight", float("nan")), r"model\.norm\.weight has 1 NaN"),
        (with_number("model.embed_tokens.weight", float("nan")), r"model\.embed_tokens\.weight has 1 NaN"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_right_are_refused_by_name(
    backend: Backend, made: Callable[[Tensors], Tensors], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=says):
        backend.load(rewrite(tiny_model(tmp_path), made), "fp32", "cpu")


def test_finite_numbers_with_an_infinite_sum_are_let_through(backend: Backend, tmp_path: Path) -> None:
    folder = rewrite(tiny_model(tmp_path), lambda t: {**t, UP: np.full_like(t[UP], 3e38)})
    backend.load(folder, "fp32", "cpu")


@pytest.mark.parametrize("precision", ["4-bit", "8-bit"])
def test_packed_weights_are_looked_at_before(backend: Backend, precision: Any, tmp_path: Path) -> None:
    import importlib.util

    if backend.name == "torch" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("torch quantises with bitsandbytes, which is not installed")
    folder = rewrite(tiny_model(tmp_path), with_number(UP, float("nan")))
    with pytest.raises(ModelError, match=rf"{UP} has 1 NaN or infinite"):
        backend.load(folder, precision, "cpu")


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_act": "evil"},
        {"rope_parameters": {"rope_type": "evil", "rope_theta": 10000.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}},
        {"layer_types": ["evil", "evil"]},
        {"use_cache": "x"},
        {"id2label": {"a": 1}},
        {"num_hidden_layers": 3},
        {"num_attention_heads": 5},
        {"tie_word_embeddings": False},
        {"head_dim": 15},
        {"dtype": "evil"},
        {"architectures": "x"},
        {"text_config": {"model_type": "llama", "hidden_size": "x"}},
    ],
)
def test_whatever_a_library_says_of_a_config_is_a_sentence(
    backend: Backend, values: dict[str, Any], tmp_path: Path
) -> None:
    folder = change(tiny_model(tmp_path), **values)
    try:
        session = backend.load(folder, "fp32", "cpu")
    except FinetuneError as error:
        assert (error.exit_code, len(str(error).split()) > 5) == (2, True)
        assert "\n" not in str(error)
    else:  # what one of them does not read; then both compute the same model
        np.testing.assert_allclose(session.logits(IDS), reference(tiny_model(tmp_path / "good")), atol=1e-3)
