"""Tokenizers that llama.cpp would read otherwise are refused by name before a model is written, and others read the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from finetune_local.export.engines import llama
from finetune_local.export.gguf import rehearsal
from finetune_local.export.gguf.rehearsal import rehearse
from finetune_local.export.targets.gguf import write_gguf
from finetune_local.export.targets.merged import write_merged
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import ModelError
from made import made_adapter
from sentencepiece_like import make_sentencepiece_like
from tiny import tiny_model

needs_llama = pytest.mark.skipif(not llama.available(), reason="xllamacpp is not installed")


@pytest.fixture(autouse=True)
def each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tokenizer was tried before."""
    monkeypatch.setattr(rehearsal, "_passed", set())


def edited(folder: Path, change: Callable[[dict[str, Any]], None]) -> ModelFolder:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")
    return ModelFolder.open(folder)


def adding(*tokens: tuple[str, dict[str, bool]]) -> Callable[[dict[str, Any]], None]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}

    def change(values: dict[str, Any]) -> None:
        for text, flags in tokens:
            free = max(*values["model"]["vocab"].values(), *(t["id"] for t in values["added_tokens"])) + 1
            values["added_tokens"].append({"id": free, "content": text, **plain, **flags})

    return change


@needs_llama
@pytest.mark.parametrize(
    "tokens",
    [
        [("<|tool|>", {"special": True})],
        [("<note>", {})],
        [("Coffee", {"normalized": True})],
        [("<a>", {}), ("<a><b>", {})],
        [("hello world", {}), ("☕️", {}), ("深圳", {})],
    ],
    ids=["special", "text", "normalized", "one within another", "spaces and signs"],
)
def test_added_tokens_that_llama_cpp_reads_alike_pass(tokens: Any, tmp_path: Path) -> None:
    model = edited(tiny_model(tmp_path / "base", "qwen2", vocab=410), adding(*tokens))
    rehearse(model, None, 410)
    assert len(rehearsal._passed) == 1


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("lstrip", "absorbs the spaces beside it"),
        ("rstrip", "absorbs the spaces beside it"),
        ("single_word", "whole words only"),
    ],
)
def test_added_tokens_with_habits_are_refused_by_name(flag: str, words: str, tmp_path: Path) -> None:
    model = edited(tiny_model(tmp_path / "base", "qwen2", vocab=410), adding(("<tea>", {flag: True})))
    with pytest.raises(ModelError, match=f"its added token “<tea>” .*{words}"):
        write_gguf(model, None, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@needs_llama
def test_tokens_that_overlap_are_found_by_trying(tmp_path: Path) -> None:
    """transformers takes what begins first, llama.cpp what is longest."""
    model = edited(tiny_model(tmp_path / "base", "qwen2", vocab=410), adding(("<ab", {}), ("ab>long", {})))
    monkeys = [*rehearsal.CUTS, "x <ab>long y"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "CUTS", tuple(monkeys))
        with pytest.raises(ModelError, match=r"llama\.cpp would tokenize the text “x <ab>long y” differently"):
            rehearse(model, None, 410)


@needs_llama
def test_a_sentencepiece_tokenizer_is_tried_before_the_model_is_written(tmp_path: Path) -> None:
    base = make_sentencepiece_like(tmp_path / "base")
    rehearse(ModelFolder.open(base), None, 512)  # spaces made by a normalizer: read the same

    def swallowing(values: dict[str, Any]) -> None:
        """As transformers 5 converts Llama 2's: a leading space is the prefix."""
        values["normalizer"] = None
        values["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}

    model = edited(base, swallowing)
    with pytest.raises(
        ModelError, match=r"llama\.cpp would tokenize the text “ leading and trailing  ” differently: it splits"
    ):
        write_gguf(model, None, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def large(folder: Path, name: str) -> ModelFolder:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].reshape(-1)[3] = 70_000.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return ModelFolder.open(folder)


def never(*_: object) -> None:
    raise AssertionError("something was written")


@pytest.mark.parametrize("quant", ["f16", "q4_1", "q5_1"])
def test_values_beyond_float16_are_refused_before_anything_is_written(
    quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune_local.export.targets import gguf, merged

    model = large(tiny_model(tmp_path / "base", tied=False), "model.layers.1.mlp.up_proj.weight")
    adapter = made_adapter(tmp_path / "base", tmp_path / "a")
    monkeypatch.setattr(gguf, "written_aside", never)
    monkeypatch.setattr(merged, "written_aside", never)
    told = r"model\.layers\.1\.mlp\.up_proj\.weight has a value of 7\d{4}(\.\d)?, but float16 only reaches 65504"
    with pytest.raises(ModelError, match=told):
        write_gguf(model, adapter, tmp_path / "m.gguf", quant)
    with pytest.raises(ModelError, match=told):
        write_merged(model, adapter, tmp_path / "m", "float16")


@pytest.mark.parametrize("quant", ["bf16", "q8_0", "q4_0"])
def test_formats_that_hold_such_values_keep_them(quant: str, tmp_path: Path) -> None:
    from gguf import GGUFReader, dequantize

    model = large(tiny_model(tmp_path / "base", tied=False), "model.layers.0.mlp.up_proj.weight")
    write_gguf(model, made_adapter(tmp_path / "base", tmp_path / "a"), tmp_path / "m.gguf", quant)
    assert all(np.isfinite(dequantize(t.data, t.tensor_type)).all() for t in GGUFReader(tmp_path / "m.gguf").tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_largest_value_is_found_as_it_is_stored(dtype: str, tmp_path: Path) -> None:
    model = ModelFolder.open(tiny_model(tmp_path / "base", dtype=dtype))
    for name in model.weights():
        assert model.largest(name) == float(np.abs(model.read(name)).max())
