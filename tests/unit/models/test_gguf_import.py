"""GGUF files are written here with the official package, by the rules of llama.cpp's converter, and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from tokenizers import Tokenizer

from finetune_local.models.folder import ModelFolder
from finetune_local.models.gguf.convert import convert, install_gguf
from finetune_local.models.gguf.tokenizer import tokenizer_files
from finetune_local.models.install import installed
from finetune_local.models.resolve import find, resolve
from finetune_local.system.errors import ModelError
from finetune_local.system.paths import Home
from tiny import tiny_model

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TEXTS = [
    "Turn the sentence into the short code, please.",
    "今天天气很好，我们去公园散步吧。12345",
    "x  1 22\t333\r\n\r\n y½Ⅷ 👍🏽 it's",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
]


def name_in_gguf(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, block, part = stem.split(".", 3)
    return f"blk.{block}.{NAMES[part]}.{kind}"


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """LlamaModel.permute of the converter."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def write_gguf(path: Path, model: ModelFolder, pre: str, kind: str = "F32", **more: Any) -> Path:
    family, config = more.pop("family", model.family), model.config
    writer = GGUFWriter(path, family)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    tokenizer = json.loads((model.path / "tokenizer.json").read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    special = {t["id"] for t in tokenizer["added_tokens"]}
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    unused = [f"[PAD{i}]" for i in range(len(texts), config["vocab_size"])]
    writer.add_tokenizer_model(more.pop("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*texts, *unused])
    writer.add_token_types([*(3 if i in special else 1 for i in range(len(texts))), *(5 for _ in unused)])
    writer.add_token_merges([" ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    if "add_bos" in more:
        writer.add_add_bos_token(more.pop("add_bos"))
    writer.add_chat_template(model.chat_template() or "")
    tensors = {n: model.read(n) for n in model.weights()}
    for name, tensor in tensors.items():
        if model.family == "llama" and ".q_proj." in name:
            tensor = permuted(tensor, config["num_attention_heads"])
        if model.family == "llama" and ".k_proj." in name:
            tensor = permuted(tensor, config["num_key_value_heads"])
        if kind == "F32" or tensor.ndim == 1:
            writer.add_tensor(name_in_gguf(name), tensor)
        else:
            raw = GGMLQuantizationType[kind]
            writer.add_tensor(name_in_gguf(name), quantize(tensor, raw), raw_dtype=raw)
    for name, tensor in more.items():
        writer.add_tensor(name.replace("__", "."), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(params=[("llama", "smollm"), ("qwen2", "qwen2"), ("qwen3", "qwen2")], ids=lambda p: p[0])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ModelFolder, str]:
    return ModelFolder.open(tiny_model(tmp_path / "tiny", request.param[0])), request.param[1]


def test_an_f32_file_gives_the_model_back(pair: tuple[ModelFolder, str], tmp_path: Path, home: Home) -> None:
    model, pre = pair
    file = write_gguf(tmp_path / "模型 x.gguf", model, pre)
    got = install_gguf(file, home.models, "back", lambda *_: None)
    assert got.weights() == model.weights()
    assert all(np.array_equal(got.read(n), model.read(n)) for n in model.weights())
    assert got.identity().config_sha256 == model.identity().config_sha256
    assert got.identity().tokenizer_sha256 == model.identity().tokenizer_sha256
    ours, theirs = (Tokenizer.from_file(str(f.path / "tokenizer.json")) for f in (got, model))
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids
    assert got.config["rope_theta"] == got.config["rope_parameters"]["rope_theta"] == 100_000.0
    generation = json.loads((got.path / "generation_config.json").read_text("utf-8"))
    assert generation == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "dtype", "gap"), [("F16", "F16", 1e-3), ("BF16", "BF16", 0.02), ("Q8_0", "BF16", 0.03)]
)
def test_other_types_are_dequantised(tmp_path: Path, home: Home, kind: str, dtype: str, gap: float) -> None:
    model = ModelFolder.open(tiny_model(tmp_path / "tiny", dtype="bfloat16"))
    got = install_gguf(write_gguf(tmp_path / "x.gguf", model, "smollm", kind), home.models, "x", lambda *_: None)
    assert {w.dtype for w in got.weights().values()} == {dtype}
    for name in model.weights():
        assert np.abs(got.read(name) - model.read(name)).max() <= gap


def test_llama3s_rope_is_found_in_its_factors(tmp_path: Path, home: Home) -> None:
    model = ModelFolder.open(tiny_model(tmp_path / "tiny"))
    # By the formula of transformers' modeling_rope_utils._compute_llama3_parameters, with a wave at a time.
    factors = []
    for i in range(0, 16, 2):
        wave = 2 * np.pi * 100_000 ** (i / 16)
        smooth = (8192 / wave - 1.0) / (4.0 - 1.0)
        factors.append(1.0 if wave < 8192 / 4 else 32.0 if wave > 8192 else 1 / ((1 - smooth) / 32.0 + smooth))
    file = write_gguf(tmp_path / "x.gguf", model, "smollm", rope_freqs__weight=np.array(factors, np.float32))
    got = install_gguf(file, home.models, "x", lambda *_: None)
    expected = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    expected["original_max_position_embeddings"] = 8192
    assert got.config["rope_scaling"] == expected
    assert got.config["rope_parameters"] == {"rope_theta": 100_000.0, **expected}
    assert set(got.weights()) == set(model.weights())
    other = write_gguf(tmp_path / "y.gguf", model, "smollm", rope_freqs__weight=np.linspace(1, 9, 8, dtype=np.float32))
    with pytest.raises(ModelError, match="not those of Llama 3"):
        install_gguf(other, home.models, "y", lambda *_: None)


def test_bos_is_added_where_the_file_says_so(tmp_path: Path, home: Home) -> None:
    model = ModelFolder.open(tiny_model(tmp_path / "tiny"))
    for says in (True, False):
        got = tmp_path / f"bos {says}"
        got.mkdir()
        convert(write_gguf(tmp_path / f"{says}.gguf", model, "smollm", add_bos=says), got, lambda *_: None)
        ids = Tokenizer.from_file(str(got / "tokenizer.json")).encode("hi").ids
        assert (ids[0] == 1) is says


def test_a_path_to_a_gguf_is_a_model_and_is_converted_once(tmp_path: Path, home: Home) -> None:
    model = ModelFolder.open(tiny_model(tmp_path / "tiny"))
    file = write_gguf(tmp_path / "my.gguf", model, "smollm")
    said: list[str] = []
    got = resolve(str(file), home, lambda text, _: said.append(text))
    assert got.path == home.models / "my"
    assert any("converting" in text for text in said)
    said.clear()
    assert resolve(str(file), home, lambda text, _: said.append(text)).path == got.path
    assert not said
    assert find("my", home).path == got.path
    write_gguf(file, ModelFolder.open(tiny_model(tmp_path / "other", seed=1)), "smollm")
    with pytest.raises(ModelError, match="a model 'my' already exists"):
        resolve(str(file), home, lambda *_: None)


def test_what_cannot_be_carried_over_is_refused_and_leaves_nothing(tmp_path: Path, home: Home) -> None:
    model = ModelFolder.open(tiny_model(tmp_path / "tiny"))
    cases = {
        "architecture 'gemma'": write_gguf(tmp_path / "a.gguf", model, "smollm", family="gemma"),
        "kind 'llama'": write_gguf(tmp_path / "b.gguf", model, "default", tokenizer="llama"),
        "pre-tokenizer 'tekken'": write_gguf(tmp_path / "c.gguf", model, "tekken"),
        "tensor blk.0.ssm_a.weight is not supported": write_gguf(
            tmp_path / "d.gguf", model, "smollm", blk__0__ssm_a__weight=np.zeros(4, np.float32)
        ),
    }
    for says, file in cases.items():
        with pytest.raises(ModelError, match=says):
            install_gguf(file, home.models, "x", lambda *_: None)
    assert not list(home.models.iterdir())
    assert not installed(home.models)


def test_damaged_files_are_told(tmp_path: Path, home: Home) -> None:
    model = ModelFolder.open(tiny_model(tmp_path / "tiny"))
    whole = write_gguf(tmp_path / "x.gguf", model, "smollm").read_bytes()
    for length in (4, 20, 3000, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            install_gguf(tmp_path / "cut.gguf", home.models, "x", lambda *_: None)
    (tmp_path / "text.gguf").write_text("not a gguf", "utf-8")
    with pytest.raises(ModelError, match="not a GGUF"):
        resolve(str(tmp_path / "text.gguf"), home, lambda *_: None)
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(whole)
    with pytest.raises(ModelError, match="split over several"):
        install_gguf(tmp_path / "x-00001-of-00002.gguf", home.models, "x", lambda *_: None)


def test_llama3_cuts_numbers_in_threes_and_takes_whole_words_first() -> None:
    values = {
        "general.architecture": "llama",
        "llama.context_length": 10,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*"0123456789", "123", "<s>", "a", "b", "c", "ab", "bc", "abc"],
        "tokenizer.ggml.token_type": [1] * 11 + [3] + [1] * 6,
        "tokenizer.ggml.merges": ["b c", "a b"],
        "tokenizer.ggml.bos_token_id": 11,
    }

    files = tokenizer_files(Path("x.gguf"), values, 18)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    assert tokenizer.encode("1234abc").tokens == ["<s>", "123", "4", "abc"]
    assert tokenizer.encode("1234", add_special_tokens=False).tokens == ["123", "4"]
