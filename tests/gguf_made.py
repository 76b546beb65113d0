"""GGUF files byte by byte, so that any of them can be wrong: the official writer makes only right ones."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

KINDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "arr": 9, "u64": 10, "i64": 11, "f64": 12}  # fmt: skip
_CODES = {"u8": "<B", "i8": "<b", "u16": "<H", "i16": "<h", "u32": "<I", "i32": "<i", "f32": "<f", "bool": "<?", "u64": "<Q", "i64": "<q", "f64": "<d"}  # fmt: skip
HIDDEN, INNER, VOCAB = 64, 128, 300


class Made:
    """A tiny Llama of one block. `values` are (kind, value), `tensors` have dims and may have kind, data, offset; `put()` sets what
    else can be wrong: magic, version, count, pairs, text_length, list_length, twice, number (in a tensor), cut (a share)."""

    def __init__(self) -> None:
        words = ["t", "1", "t1", *(f"w{i}" for i in range(VOCAB - 6)), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        self.values: dict[str, tuple[str, Any]] = {
            "general.architecture": ("str", "llama"),
            "general.alignment": ("u32", 32),
            "llama.context_length": ("u32", 512),
            "llama.embedding_length": ("u32", HIDDEN),
            "llama.block_count": ("u32", 1),
            "llama.feed_forward_length": ("u32", INNER),
            "llama.attention.head_count": ("u32", 4),
            "llama.attention.head_count_kv": ("u32", 2),
            "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
            "llama.rope.freq_base": ("f32", 1e4),
            "tokenizer.ggml.model": ("str", "gpt2"),
            "tokenizer.ggml.pre": ("str", "smollm"),
            "tokenizer.ggml.tokens": ("arr:str", words),
            "tokenizer.ggml.token_type": ("arr:i32", [1] * (VOCAB - 3) + [3] * 3),
            "tokenizer.ggml.merges": ("arr:str", ["t 1"]),
            "tokenizer.ggml.eos_token_id": ("u32", VOCAB - 1),
            "tokenizer.ggml.bos_token_id": ("u32", VOCAB - 2),
            "tokenizer.ggml.padding_token_id": ("u32", VOCAB - 3),
            "tokenizer.chat_template": ("str", "{% for m in messages %}{{ m.content }}{% endfor %}"),
        }
        sizes = {
            "token_embd": [HIDDEN, VOCAB], "output_norm": [HIDDEN], "blk.0.attn_norm": [HIDDEN], "blk.0.attn_q": [HIDDEN, HIDDEN],
            "blk.0.attn_k": [HIDDEN, HIDDEN // 2], "blk.0.attn_v": [HIDDEN, HIDDEN // 2], "blk.0.attn_output": [HIDDEN, HIDDEN],
            "blk.0.ffn_norm": [HIDDEN], "blk.0.ffn_gate": [HIDDEN, INNER], "blk.0.ffn_up": [HIDDEN, INNER], "blk.0.ffn_down": [INNER, HIDDEN],
        }  # fmt: skip
        self.tensors: dict[str, dict[str, Any]] = {f"{name}.weight": {"dims": dims} for name, dims in sizes.items()}
        self._put: dict[str, Any] = {}

    def put(self, **values: Any) -> None:
        """Set what else is to be wrong."""
        self._put |= values

    def bytes(self) -> bytes:
        """The file."""
        put = self._put
        pairs = list(self.values.items())
        if again := put.get("twice"):
            pairs.append((again, self.values[again]))
        data, infos = self._data()
        head = put.get("magic", b"GGUF") + struct.pack("<I", put.get("version", 3))
        head += struct.pack("<QQ", put.get("count", len(infos)), put.get("pairs", len(pairs)))
        for key, (kind, value) in pairs:
            head += _text(key) + self._value(kind, value)
        head += b"".join(infos)
        whole = head + bytes(-len(head) % 32) + data
        return whole[: int(len(whole) * put["cut"])] if "cut" in put else whole

    def _data(self) -> tuple[bytes, list[bytes]]:
        rng = np.random.default_rng(0)
        data, infos = b"", []
        for name, tensor in self.tensors.items():
            dims, kind = tensor["dims"], tensor.get("kind", 0)
            size = 1
            for one in dims:
                size *= one
            raw = tensor.get("data")
            if raw is None:
                numbers = rng.normal(0, 0.1, size if 0 < size < 10**6 else 4096).astype("<f4")
                if "number" in self._put and name.endswith("ffn_up.weight"):
                    numbers[7] = self._put["number"]
                raw = numbers.tobytes()
            begin = tensor.get("offset", len(data))
            infos.append(_text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims))
            infos[-1] += struct.pack("<IQ", kind, begin)
            data += raw + bytes(-len(raw) % 32)
        return data, infos

    def _value(self, kind: str, value: Any) -> bytes:
        name, _, inner = kind.partition(":")
        if name == "nested":
            return struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * value + struct.pack("<IQB", 7, 1, 1)
        if name == "type":
            return struct.pack("<I", int(inner))
        if name == "arr":
            count = self._put.get("list_length", len(value))
            items = b"".join(_text(one) if inner == "str" else struct.pack(_CODES[inner], one) for one in value)
            return struct.pack("<IIQ", 9, KINDS[inner], count) + items
        if name == "str":
            length = self._put.get("text_length")
            content = _text(value)
            return struct.pack("<I", 8) + (content if length is None else struct.pack("<Q", length) + content[8:])
        return struct.pack("<I", KINDS[name]) + struct.pack(_CODES[name], value)


def _text(value: str) -> bytes:
    content = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(content)) + content
