"""What stands in a GGUF file: tensors, sizes, positions and the tokenizer, read back by the official reader."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, dequantize

from finetune_local.export.gguf.tensors import rotary_order
from finetune_local.export.gguf.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, read_vocabulary
from finetune_local.export.targets.gguf import write_gguf
from finetune_local.export.weights import MergedWeights
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import DiskFull, ModelError
from made import made_adapter
from sentencepiece_like import make_sentencepiece_like
from tiny import CHATML, HEADS, KV_HEADS, THETA, tiny_model


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, np.ndarray]:
    reader = GGUFReader(path)
    return {
        t.name: dequantize(t.data, t.tensor_type).reshape(tuple(int(n) for n in reversed(t.shape)))
        for t in reader.tensors
    }


def test_metadata_of_a_llama(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "a 模.gguf"
    assert write_gguf(ModelFolder.open(tiny, "我的 base"), None, out) == [out]
    found = fields(out)
    expected = {
        "general.architecture": "llama",
        "general.name": "我的 base",
        "general.type": "model",
        "general.file_type": 1,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": THETA,
        "llama.vocab_size": 384,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.chat_template": CHATML,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert "llama.rope.scaling.type" not in found
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    vocabulary = json.loads((tiny / "tokenizer.json").read_text("utf-8"))["model"]
    assert len(tokens) == len(types) == 384
    assert all(tokens[i] == text for text, i in vocabulary["vocab"].items())
    assert types[:3] == [CONTROL] * 3 and types[3] == NORMAL
    spare = range(len(vocabulary["vocab"]), 384)
    assert len(spare) and all(types[i] == UNUSED and tokens[i] == f"[PAD{i}]" for i in spare)
    assert found["tokenizer.ggml.merges"] == [" ".join(m) for m in vocabulary["merges"]]


def test_tensors_are_the_merged_ones_in_llama_cpps_order(tiny: Path, tmp_path: Path) -> None:
    adapter = made_adapter(tiny, tmp_path / "adapter")
    model = ModelFolder.open(tiny)
    write_gguf(model, adapter, tmp_path / "a.gguf", "f32")
    found, weights = tensors(tmp_path / "a.gguf"), MergedWeights(model, adapter)
    assert "output.weight" not in found  # tied
    assert len(found) == len(weights.shapes())
    block = "model.layers.1.self_attn."
    assert np.array_equal(found["token_embd.weight"], weights.read("model.embed_tokens.weight"))
    assert np.array_equal(found["blk.1.attn_v.weight"], weights.read(block + "v_proj.weight"))
    assert np.array_equal(found["blk.1.ffn_down.weight"], weights.read("model.layers.1.mlp.down_proj.weight"))
    q, k = weights.read(block + "q_proj.weight"), weights.read(block + "k_proj.weight")
    assert np.array_equal(found["blk.1.attn_q.weight"], rotary_order(q, HEADS))
    assert np.array_equal(found["blk.1.attn_k.weight"], rotary_order(k, KV_HEADS))
    assert not np.array_equal(q, model.read(block + "q_proj.weight"))


def test_rotary_rows_go_from_halves_to_pairs() -> None:
    rows = np.arange(8, dtype=np.float32)[:, None]  # one head of width 8
    assert rotary_order(rows, 1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert rotary_order(np.arange(8, dtype=np.float32), 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(("quant", "error"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 1e-2)])
def test_number_formats_keep_vectors_exact_and_matrices_close(
    tiny: Path, tmp_path: Path, quant: str, error: float
) -> None:
    model = ModelFolder.open(tiny)
    write_gguf(model, None, tmp_path / "a.gguf", quant)
    reader = GGUFReader(tmp_path / "a.gguf")
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    assert kinds["blk.0.attn_v.weight"] == quant.upper() == kinds["token_embd.weight"]
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    found = tensors(tmp_path / "a.gguf")
    assert np.array_equal(found["output_norm.weight"], model.read("model.norm.weight"))
    weight = model.read("model.layers.0.mlp.up_proj.weight")
    assert 0 < np.abs(found["blk.0.ffn_up.weight"] - weight).max() < error * np.abs(weight).max()


def test_qwen_families_have_biases_norms_and_their_own_cut(tmp_path: Path) -> None:
    write_gguf(ModelFolder.open(tiny_model(tmp_path / "2", "qwen2")), None, tmp_path / "2.gguf")
    write_gguf(ModelFolder.open(tiny_model(tmp_path / "3", "qwen3")), None, tmp_path / "3.gguf")
    two, three = fields(tmp_path / "2.gguf"), fields(tmp_path / "3.gguf")
    assert (two["general.architecture"], three["general.architecture"]) == ("qwen2", "qwen3")
    assert two["tokenizer.ggml.pre"] == three["tokenizer.ggml.pre"] == "qwen2"
    assert (three["qwen3.attention.key_length"], three["qwen3.rope.freq_base"]) == (16, THETA)
    assert "blk.0.attn_q.bias" in tensors(tmp_path / "2.gguf")
    names = tensors(tmp_path / "3.gguf")
    assert "blk.0.attn_q_norm.weight" in names and "output.weight" in names


def edited(folder: Path, **changes: Any) -> ModelFolder:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **changes}), "utf-8")
    return ModelFolder.open(folder)


def test_rope_scaling_is_written(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base")
    linear = edited(base, rope_parameters={"rope_theta": 5e4, "rope_type": "linear", "factor": 4.0})
    write_gguf(linear, None, tmp_path / "a.gguf")
    found = fields(tmp_path / "a.gguf")
    assert found["llama.rope.scaling.type"] == "linear" and found["llama.rope.scaling.factor"] == 4.0
    assert found["llama.rope.freq_base"] == 5e4
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    write_gguf(edited(base, rope_parameters=None, rope_theta=1e4, rope_scaling=yarn), None, tmp_path / "a.gguf")
    found = fields(tmp_path / "a.gguf")
    assert (found["llama.rope.scaling.type"], found["llama.rope.scaling.original_context_length"]) == ("yarn", 128)
    llama3 = {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3["original_max_position_embeddings"] = 64
    write_gguf(edited(base, rope_parameters=llama3, rope_scaling=None), None, tmp_path / "a.gguf")
    factors = tensors(tmp_path / "a.gguf")["rope_freqs.weight"]
    assert factors.shape == (8,) and factors[0] == 1.0 and factors[-1] == 8.0 and np.all(np.diff(factors) >= 0)
    with pytest.raises(ModelError, match="'longrope', which cannot be written"):
        write_gguf(edited(base, rope_parameters={"rope_type": "longrope"}), None, tmp_path / "b.gguf")
    with pytest.raises(ModelError, match="'llama3', which cannot be written"):
        write_gguf(edited(tiny_model(tmp_path / "q", "qwen3"), rope_parameters=llama3), None, tmp_path / "b.gguf")


def test_what_llama_cpp_would_compute_otherwise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="only SiLU"):
        write_gguf(edited(tiny_model(tmp_path / "a"), hidden_act="gelu"), None, tmp_path / "x.gguf")
    qwen = tiny_model(tmp_path / "b", "qwen2")
    with pytest.raises(ModelError, match="sliding-window"):
        write_gguf(edited(qwen, use_sliding_window=True, sliding_window=64), None, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("x*"))


def tokenizer_edited(folder: Path, change: Any) -> ModelFolder:
    path = folder / "tokenizer.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")
    return ModelFolder.open(folder)


def test_an_unknown_way_to_cut_text_is_refused_not_guessed(tmp_path: Path) -> None:
    def other_split(values: Any) -> None:
        values["pre_tokenizer"] = {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }

    model = tokenizer_edited(tiny_model(tmp_path / "a"), other_split)
    with pytest.raises(ModelError, match=r"how it splits text into words.*not guessed"):
        write_gguf(model, None, tmp_path / "x.gguf")
    lower = tokenizer_edited(tiny_model(tmp_path / "b"), lambda v: v.update(normalizer={"type": "Lowercase"}))
    with pytest.raises(ModelError, match="Lowercase"):
        read_vocabulary(lower)


def test_a_token_added_without_resizing_is_refused(tmp_path: Path) -> None:
    def add(values: Any) -> None:
        values["added_tokens"].append({"id": 384, "content": "<new>", "special": False})

    with pytest.raises(ModelError, match=r"385 tokens, but the embedding has 384 rows"):
        read_vocabulary(tokenizer_edited(tiny_model(tmp_path / "a"), add))


def test_a_special_token_without_a_row_is_left_out(tmp_path: Path) -> None:
    def add(values: Any) -> None:
        values["added_tokens"].append({"id": 384, "content": "<image>", "special": True})

    vocabulary = read_vocabulary(tokenizer_edited(tiny_model(tmp_path / "a"), add))
    assert len(vocabulary.tokens) == 384 and "<image>" not in vocabulary.tokens


def test_added_words_are_not_special(tmp_path: Path) -> None:
    def add(values: Any) -> None:
        values["added_tokens"].append({"id": 383, "content": "深圳", "special": False})

    vocabulary = read_vocabulary(tokenizer_edited(tiny_model(tmp_path / "a"), add))
    assert (vocabulary.tokens[383], vocabulary.types[383]) == ("深圳", USER_DEFINED)


def test_a_sentencepiece_like_vocabulary_has_scores_bytes_and_a_prefix(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(ModelFolder.open(make_sentencepiece_like(tmp_path / "a")))
    assert vocabulary.model == "llama" and vocabulary.space_prefix and not vocabulary.merges
    types = dict(zip(vocabulary.tokens, vocabulary.types, strict=True))
    assert (types["<unk>"], types["<s>"], types["<0x0A>"]) == (UNKNOWN, CONTROL, BYTE)
    scores = dict(zip(vocabulary.tokens, vocabulary.scores, strict=True))
    merged = [text for text in vocabulary.tokens if len(text) > 1 and types[text] == NORMAL]
    assert merged and all(scores[text] <= 0 for text in merged)
    assert max(scores[text] for text in merged) == 0.0


def test_a_disk_that_fills_up_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="no file size limits on this system")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskFull, match="No partial files"):
            write_gguf(ModelFolder.open(tiny), None, tmp_path / "a.gguf", "f32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
