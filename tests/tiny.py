"""Tiny models made on the spot: complete Hugging Face folders with random weights, by numpy and tokenizers alone.

Two blocks of width 64 with grouped queries and a byte-level BPE of a few hundred tokens that knows a little English and
Chinese. Real in every other way: transformers and mlx-lm load them. The rope's theta is not the default one and stands
where transformers 5 writes it, so that a loader that overlooks it gives other logits.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FAMILIES = ("llama", "qwen2", "qwen3", "gemma")
MORE_FAMILIES = ("mistral", "gemma2", "gemma3_text")

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM = 64, 128, 4, 2, 16
THETA = 100_000.0
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CORPUS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "Turn the sentence into the short code of our shop, please; answer with the code only.",
    "What is the capital of France? The capital of France is Paris. 2 + 2 = 4, 10 - 3 = 7.",
    "user asks a question, assistant gives an answer, system sets the rules.",
    "Write one line of text for each name: Ada, Grace, Alan, Edsger, Barbara and Donald.",
    "今天天气很好，我们去公园散步吧。请用一句话回答这个问题。",
    "法国的首都是巴黎。我想要三杯咖啡和两个苹果，谢谢。",
    '{"order": ["coffee", "tea"], "count": 3, "ok": true}',
)
_ARCHITECTURE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_model(
    folder: Path,
    family: str = "llama",
    seed: int = 0,
    vocab: int = 384,
    layers: int = 2,
    dtype: str = "float32",
    tied: bool | None = None,
    shards: int = 1,
) -> Path:
    """Write a model into `folder` (made if missing) and return it.

    `vocab` is the rows of the embedding, at least as many as the tokenizer's tokens; `dtype` float32, bfloat16 or float16;
    `tied` is whether the head is the embedding (None: as is usual in the family); `shards` above 1 adds an index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if tied is None:
        tied = family not in ("qwen3", "mistral")
    files = {
        "config.json": json.dumps(config(family, vocab, layers, dtype, tied), indent=2),
        "generation_config.json": json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}),
        "tokenizer.json": _tokenizer(family, vocab),
        "tokenizer_config.json": json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": SPECIAL[1],
                "eos_token": SPECIAL[2],
                "pad_token": SPECIAL[0],
                "add_bos_token": False,
                "clean_up_tokenization_spaces": False,
                "model_max_length": 512,
            }
        ),
        "chat_template.jinja": CHATML,
    }
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8", newline="\n")
    _write_weights(folder, weights(family, seed, vocab, layers, tied), dtype, shards)
    return folder


def config(family: str, vocab: int, layers: int, dtype: str, tied: bool) -> dict[str, Any]:
    """config.json as transformers 5 writes it."""
    values: dict[str, Any] = {
        "architectures": [_ARCHITECTURE[family]],
        "model_type": family,
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_theta": THETA, "rope_type": "default"},
        "tie_word_embeddings": tied,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": dtype,
        "use_cache": True,
    }
    if family in ("llama", "mistral", "qwen2", "qwen3"):
        values["hidden_act"] = "silu"
    if family == "llama":
        values |= {"attention_bias": False, "mlp_bias": False}
    if family == "mistral":
        values["sliding_window"] = None
    if family == "qwen3":
        values["attention_bias"] = False
    if family.startswith("gemma"):
        values |= {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
    if family in ("gemma2", "gemma3_text"):
        values |= {"query_pre_attn_scalar": HEAD_DIM, "sliding_window": 64}
        values["layer_types"] = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    if family == "gemma2":
        values |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if family == "gemma3_text":
        values["sliding_window_pattern"] = 2
        values["rope_parameters"] = {
            "full_attention": {"rope_theta": THETA, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
        }
    return values


def weights(family: str, seed: int, vocab: int, layers: int, tied: bool) -> dict[str, np.ndarray]:
    """Random fp32 weights under the family's names, big enough that the logits differ from token to token."""
    rng = np.random.default_rng(seed)
    gemma = family.startswith("gemma")

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0.0, 1.0 / math.sqrt(columns), (rows, columns)).astype(np.float32)

    def norm(size: int) -> np.ndarray:
        # Gemma stores the distance from one.
        return (rng.normal(0.0, 0.1, size) + (0.0 if gemma else 1.0)).astype(np.float32)

    # Gemma multiplies its embeddings by √hidden: smaller ones, or the residual stream would only repeat the last token.
    spread = 0.06 if gemma else 0.15
    result = {"model.embed_tokens.weight": rng.normal(0.0, spread, (vocab, HIDDEN)).astype(np.float32)}
    for i in range(layers):
        block = f"model.layers.{i}."
        attention, mlp = block + "self_attn.", block + "mlp."
        for name, rows in (
            ("q_proj", HEADS * HEAD_DIM),
            ("k_proj", KV_HEADS * HEAD_DIM),
            ("v_proj", KV_HEADS * HEAD_DIM),
        ):
            result[f"{attention}{name}.weight"] = matrix(rows, HIDDEN)
            if family == "qwen2":
                result[f"{attention}{name}.bias"] = rng.normal(0.0, 0.1, rows).astype(np.float32)
        result[attention + "o_proj.weight"] = matrix(HIDDEN, HEADS * HEAD_DIM)
        if family in ("qwen3", "gemma3_text"):
            result[attention + "q_norm.weight"] = norm(HEAD_DIM)
            result[attention + "k_norm.weight"] = norm(HEAD_DIM)
        result[mlp + "gate_proj.weight"] = matrix(INTERMEDIATE, HIDDEN)
        result[mlp + "up_proj.weight"] = matrix(INTERMEDIATE, HIDDEN)
        result[mlp + "down_proj.weight"] = matrix(HIDDEN, INTERMEDIATE)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if family in ("gemma2", "gemma3_text"):
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        result |= {f"{block}{name}.weight": norm(HIDDEN) for name in norms}
    result["model.norm.weight"] = norm(HIDDEN)
    if not tied:
        result["lm_head.weight"] = rng.normal(0.0, 0.15, (vocab, HIDDEN)).astype(np.float32)
    return result


@cache
def _tokenizer(family: str, vocab: int) -> str:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if family.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:  # as SmolLM2
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocab, 380),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return str(tokenizer.to_str(pretty=False))


def _write_weights(folder: Path, tensors: dict[str, np.ndarray], dtype: str, shards: int) -> None:
    names = list(tensors)
    index: dict[str, str] = {}
    total = 0
    for number in range(1, shards + 1):
        part = names[number - 1 :: shards]
        name = "model.safetensors" if shards == 1 else f"model-{number:05d}-of-{shards:05d}.safetensors"
        content = _safetensors({n: tensors[n] for n in part}, dtype)
        (folder / name).write_bytes(content)
        index |= dict.fromkeys(part, name)
        total += len(content)
    if shards > 1:
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def _safetensors(tensors: dict[str, np.ndarray], dtype: str) -> bytes:
    """The file format by hand (numpy has no bfloat16): header length, JSON header padded to 8 bytes, then the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        raw = _bytes(array, dtype)
        offsets = [len(data), len(data) + len(raw)]
        short = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
        header[name] = {"dtype": short, "shape": array.shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def _bytes(array: np.ndarray, dtype: str) -> bytes:
    if dtype == "bfloat16":  # rounded to nearest, ties to even
        bits = array.view(np.uint32)
        return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes())
    return bytes(array.astype(dtype).tobytes())
