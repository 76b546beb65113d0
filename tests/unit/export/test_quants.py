"""Which format each tensor gets, and that K-quants are ggml's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, dequantize, quants

from finetune_local.export.engines import llama
from finetune_local.export.gguf import ggml
from finetune_local.export.gguf.ggml import Ggml
from finetune_local.export.gguf.quants import BY_KEY, kind_of
from finetune_local.export.targets import Source
from finetune_local.export.targets.gguf import TARGET, write_gguf
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import ModelError
from made import made_adapter

needs_ggml = pytest.mark.skipif(not llama.available() or ggml.missing() is not None, reason="no ggml to ask")


def kind(name: str, shape: tuple[int, ...], quant: str, blocks: int = 32, tied: bool = False) -> str:
    return kind_of(name, shape, quant, blocks, tied).name


def test_plain_formats_are_the_same_for_every_matrix() -> None:
    for quant in ("f16", "bf16", "q8_0", "q5_1", "q4_0"):
        head = "Q8_0" if quant.startswith(("q5", "q4")) else quant.upper()
        assert kind("blk.0.attn_q.weight", (64, 64), quant) == quant.upper()
        assert kind("output.weight", (64, 64), quant) == kind("token_embd.weight", (64, 64), quant, tied=True) == head
        assert kind("blk.0.attn_norm.weight", (64,), quant) == "F32"
    assert kind("blk.0.attn_q.weight", (64, 40), "q4_0") == "F16"  # 40 is no multiple of a block's 32


def test_k_quants_are_mixed_as_llama_quantize_mixes_them() -> None:
    """Q4_K_M of a model of 32 blocks: what its files on the hub have."""
    better = [i for i in range(32) if kind(f"blk.{i}.ffn_down.weight", (256, 512), "q4_k_m") == "Q6_K"]
    assert better == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert better == [i for i in range(32) if kind(f"blk.{i}.attn_v.weight", (256, 512), "q4_k_m") == "Q6_K"]
    for name in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert kind(f"blk.0.{name}.weight", (256, 512), "q4_k_m") == "Q4_K"
    assert kind("output.weight", (1000, 512), "q4_k_m") == "Q6_K"
    assert kind("token_embd.weight", (1000, 512), "q4_k_m") == "Q4_K"
    assert kind("token_embd.weight", (1000, 512), "q5_k_m", tied=True) == "Q6_K"


def test_rows_that_do_not_divide_get_the_next_plain_format() -> None:
    """SmolLM2's width is 576."""
    assert kind("blk.5.attn_q.weight", (576, 576), "q4_k_m") == "Q5_0"
    assert kind("blk.5.attn_q.weight", (576, 576), "q5_k_m") == "Q5_1"
    assert kind("blk.5.attn_q.weight", (576, 576), "q6_k") == "Q8_0"
    assert kind("token_embd.weight", (1000, 576), "q4_k_m", tied=True) == "Q8_0"


def test_the_size_is_known_before_it_is_written(tiny: Path, tmp_path: Path) -> None:
    model = ModelFolder.open(tiny)
    sizes = {}
    for quant in BY_KEY:
        write_gguf(model, None, tmp_path / "m.gguf", quant)
        sizes[quant] = (tmp_path / "m.gguf").stat().st_size
        # the tokenizer, which is told roughly, is a tenth of so small a model
        assert TARGET.size(Source(model, None), quant) == pytest.approx(sizes[quant], rel=0.1), quant
    assert sizes["q4_0"] < sizes["q5_0"] < sizes["q8_0"] < sizes["f16"] < sizes["f32"]


@needs_ggml
def test_what_ggml_packs_the_reader_unpacks() -> None:
    weight = np.random.default_rng(0).normal(0, 0.05, (2, 3, 512)).astype(np.float32)
    with Ggml() as child:
        for name, error in (("Q4_K", 0.09), ("Q5_K", 0.05), ("Q6_K", 0.03)):
            packed = child.quantise(weight, GGMLQuantizationType[name])
            back = dequantize(packed, GGMLQuantizationType[name])
            assert back.shape == weight.shape
            assert np.sqrt(((back - weight) ** 2).mean()) < error * weight.std(), name
        plain = child.quantise(weight, GGMLQuantizationType.Q8_0)  # which the gguf package can write too
        assert np.array_equal(plain, quants.quantize(weight, GGMLQuantizationType.Q8_0))


@needs_ggml
def test_many_pieces_are_the_same_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).normal(0, 0.05, (37, 256)).astype(np.float32)
    with Ggml() as child:
        whole = child.quantise(weight, GGMLQuantizationType.Q4_K)
        monkeypatch.setattr(ggml, "_PIECE", 5 * 4 * 256)
        assert np.array_equal(child.quantise(weight, GGMLQuantizationType.Q4_K), whole)


@needs_ggml
def test_a_k_quant_is_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny

    monkeypatch.setattr(tiny, "HIDDEN", 256)
    monkeypatch.setattr(tiny, "INTERMEDIATE", 512)
    model = ModelFolder.open(tiny.tiny_model(tmp_path / "m"))
    write_gguf(model, None, tmp_path / "m.gguf", "q4_k_m")
    reader = GGUFReader(tmp_path / "m.gguf")
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == "Q4_K" and kinds["token_embd.weight"] == "Q6_K"
    assert reader.fields["general.file_type"].contents() == 15
    found = next(t for t in reader.tensors if t.name == "blk.0.ffn_up.weight")
    weight = model.read("model.layers.0.mlp.up_proj.weight")
    assert np.abs(dequantize(found.data, found.tensor_type) - weight).max() < 0.2 * np.abs(weight).max()


def test_where_ggml_is_not_there_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny

    monkeypatch.setattr(ggml, "available", lambda: False)
    ggml.missing.cache_clear()
    monkeypatch.setattr(tiny, "HIDDEN", 256)
    model = ModelFolder.open(tiny.tiny_model(tmp_path / "m"))
    with pytest.raises(ModelError, match=r"xllamacpp, which is not installed\. pip install xllamacpp"):
        write_gguf(model, None, tmp_path / "m.gguf", "q4_k_m")
    ggml.missing.cache_clear()
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_a_base_of_a_4_bit_file_is_not_written_in_that_format_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding would take the training out of it; a bare base loses nothing, and other formats keep it."""
    import tiny

    made = tiny.weights

    def rounded(*what: Any, **more: Any) -> dict[str, np.ndarray]:
        q4 = GGMLQuantizationType.Q4_1
        return {
            n: quants.dequantize(quants.quantize(w, q4), q4) if w.ndim == 2 else w
            for n, w in made(*what, **more).items()
        }

    monkeypatch.setattr(tiny, "weights", rounded)
    base = tiny.tiny_model(tmp_path / "m")
    adapter = made_adapter(base, tmp_path / "a")
    with pytest.raises(ModelError, match=r"converted from a Q4_1 file\..*rounded away"):
        write_gguf(ModelFolder.open(base), adapter, tmp_path / "m.gguf", "q4_1")
    write_gguf(ModelFolder.open(base), adapter, tmp_path / "m.gguf", "q4_0")
    write_gguf(ModelFolder.open(base), None, tmp_path / "m.gguf", "q4_1")


def test_a_worker_that_dies_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import sys; print('{}', flush=True); sys.exit('no more')", "utf-8")
    monkeypatch.setattr(ggml, "_WORKER", script)
    with Ggml() as child, pytest.raises(ModelError, match=r"ended with exit code 1\. It printed: no more"):
        child.quantise(np.zeros((8, 256), np.float32), GGMLQuantizationType.Q4_K)
