"""GGUF files that were damaged or made to harm: a sentence each, in little time, and nothing is left behind."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.models.gguf.convert import install_gguf
from finetune_local.system.errors import ModelError
from finetune_local.system.paths import Home
from gguf_made import Made

Change = Callable[[Made], Any]


def set_value(key: str, kind: str, value: Any) -> Change:
    return lambda made: made.values.__setitem__(key, (kind, value))


def set_tensor(name: str, **values: Any) -> Change:
    return lambda made: made.tensors[name].update(values)


def renamed(before: str, after: str) -> Change:
    def change(made: Made) -> None:
        made.tensors = {after if name == before else name: tensor for name, tensor in made.tensors.items()}

    return change


def test_the_file_that_the_others_are_made_from_is_good(tmp_path: Path, home: Home) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(Made().bytes())
    model = install_gguf(file, home.models, "x", lambda *_: None)
    assert (model.blocks, model.vocabulary, model.info().kv_heads) == (1, 300, 2)


A = "llama."
T = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (set_value("general.architecture", "u32", 1), r"general\.architecture is 1, but it must be a text"),
        (set_value(A + "attention.head_count", "u32", 0), r"attention\.head_count is 0, but it must be a whole number from 1"),
        (set_value(A + "attention.head_count_kv", "u32", 0), r"head_count_kv is 0"),
        (set_value(A + "attention.head_count_kv", "u32", 3), "cannot share 3 heads|has 32 rows"),
        (set_value(A + "attention.head_count", "arr:u32", [4]), r"head_count is a list, but it must be a whole"),
        (set_value(A + "embedding_length", "u32", 128), "does not match 4 heads of 32"),
        (set_value(A + "block_count", "u32", 10**9), r"block_count is 1000000000"),
        (set_value(A + "block_count", "u32", 2), "declares 2 blocks .* but the weights have 1"),
        (set_value(A + "feed_forward_length", "u32", 7), "an inner width of 7"),
        (set_value(A + "context_length", "str", "x"), r"context_length is 'x'"),
        (set_value(A + "attention.layer_norm_rms_epsilon", "f32", float("nan")), r"epsilon is nan, but it must be a number from 0 to 1"),
        (set_value(A + "rope.freq_base", "f32", 0.0), r"rope\.freq_base is 0\.0"),
        (set_value(A + "rope.freq_base", "f32", float("inf")), r"rope\.freq_base is inf"),
        (set_value(A + "rope.scaling.type", "str", "evil"), "RoPE scaling 'evil'"),
        (set_value("general.alignment", "u32", 0), r"'general\.alignment' is 0"),
        (set_value("general.alignment", "u32", 2**31), r"'general\.alignment' is 2147483648"),
        (set_value("general.alignment", "u32", 31), r"'general\.alignment' is 31"),
        (set_value("general.alignment", "str", "32"), r"'general\.alignment' is '32'"),
        (set_value("x", "nested", 900), "'x' is a list of lists"),
        (set_value("x", "type:99", 0), "'x' is of the unknown type 99"),
        (set_value(T + "tokens", "arr:u32", [1, 2]), r"tokens is a list, but it must be a list of texts"),
        (set_value(T + "tokens", "arr:str", [f"w{i}" for i in range(301)]), r"has 301 tokens, but the embedding has 300 rows, none for 'w300'"),
        (set_value(T + "tokens", "arr:str", ["same"] * 300), "tokens 0 and 1 are the same text 'same'"),
        (set_value(T + "token_type", "arr:i32", [1] * 5), "does not have one type for each of 300 tokens"),
        (set_value(T + "token_type", "arr:f32", [1.0] * 300), "does not have one type for each of 300 tokens"),
        (set_value(T + "merges", "arr:str", ["nospace"]), "its tokenizer is damaged"),
        (set_value(T + "merges", "str", "t 1"), r"merges is 't 1', but it must be a list of texts"),
        (set_value(T + "eos_token_id", "u32", 300), r"eos_token_id is 300, but it must be the number of one of its 300 tokens"),
        (set_value(T + "bos_token_id", "i32", -7), r"bos_token_id is -7"),
        (set_value(T + "padding_token_id", "str", "x"), r"padding_token_id is 'x'"),
        (set_value(T + "add_bos_token", "str", "x"), r"add_bos_token is 'x', but it must be true or false"),
        (set_value("tokenizer.chat_template", "u32", 1), r"chat_template is 1, but it must be a text"),
        (lambda m: m.values.pop(T + "tokens"), r"lacks tokenizer\.ggml\.tokens"),
        (lambda m: m.values.pop(A + "block_count"), r"lacks llama\.block_count"),
        (lambda m: m.put(count=2**60), "1152921504606846976 tensors"),
        (lambda m: m.put(pairs=2**60), "1152921504606846976 values of metadata"),
        (lambda m: m.put(pairs=10_001), "10001 values of metadata"),
        (lambda m: m.put(version=99), "its version is 99"),
        (lambda m: m.put(version=3 << 24), "another byte order"),
        (lambda m: m.put(magic=b"GGUX"), "not a GGUF file"),
        (lambda m: m.put(text_length=2**60), "is 1152921504606846976 bytes long"),
        (lambda m: m.put(list_length=2**60), "has 1152921504606846976 items"),
        (lambda m: m.put(twice="llama.block_count"), r"has 'llama\.block_count' twice"),
        (set_tensor("blk.0.attn_q.weight", offset=0), "tensors overlap"),
        (set_tensor("blk.0.attn_q.weight", offset=32), "tensors overlap"),
        (set_tensor("blk.0.attn_q.weight", offset=2**63), "tensors overlap, or something is missing"),
        (lambda m: [tensor.update(offset=0) for tensor in m.tensors.values()], "tensors overlap"),
        (set_tensor("blk.0.attn_q.weight", kind=99), "is of type 99, which is not supported"),
        (set_tensor("blk.0.attn_q.weight", kind=16), "tensors overlap, or something is missing|cannot be read|cannot be IQ2"),
        (set_tensor("blk.0.attn_q.weight", dims=[2**32, 2**32]), "tensors overlap, or something|should end|attn_q"),
        (set_tensor("blk.0.attn_q.weight", dims=[2**62, 64]), "cannot be F32 of"),
        (set_tensor("blk.0.attn_q.weight", dims=[0, 64]), "cannot be F32 of 0 × 64 numbers"),
        (set_tensor("blk.0.attn_q.weight", dims=[1] * 72), "has 72 dimensions"),
        (set_tensor("blk.0.attn_q.weight", dims=[]), "has 0 dimensions"),
        (set_tensor("blk.0.attn_q.weight", dims=[32, 128]), "has 128 rows, which does not match 4 heads of 16"),
        (set_tensor("token_embd.weight", dims=[64 * 300]), "it has no embedding"),
        (renamed("blk.0.attn_q.weight", "blk.0.evil.weight"), r"tensor blk\.0\.evil\.weight is not supported"),
        (renamed("blk.0.attn_q.weight", "blk.٣.attn_q.weight"), "is not supported"),
        (renamed("blk.0.attn_q.weight", "blk.99999999999999999999.attn_q.weight"), "is not supported"),
        (renamed("blk.0.attn_q.weight", "blk.5.attn_q.weight"), "declares 1 blocks .* but the weights have 6"),
        (renamed("blk.0.ffn_up.weight", "blk.00.ffn_gate.weight"), r"mlp\.gate_proj\.weight is in it twice"),
        (renamed("blk.0.attn_q.weight", "a" * 70_000), "the name of a tensor is 70000 bytes long"),
        (lambda m: m.put(number=float("nan")), "NaN or infinite"),
        (lambda m: m.put(number=float("inf")), "NaN or infinite"),
        (lambda m: m.put(cut=0.5), "should end at byte|would be"),
        (lambda m: m.put(cut=0.01), "would be .* bytes at byte"),
        (lambda m: m.put(cut=0), "would be 4 bytes at byte 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_told(change: Change, says: str, tmp_path: Path, home: Home) -> None:
    made = Made()
    change(made)
    file = tmp_path / "x.gguf"
    file.write_bytes(made.bytes())
    begun = time.process_time()
    with pytest.raises(ModelError, match=says) as caught:
        install_gguf(file, home.models, "x", lambda *_: None)
    assert time.process_time() - begun < 5
    assert len(str(caught.value)) < 1000
    assert not list(home.models.iterdir()), "nothing is left behind"


def test_quantised_blocks_with_scales_that_are_no_numbers(tmp_path: Path, home: Home) -> None:
    """Q8_0: a scale in float16 and 32 integers; the scale is NaN."""
    made = Made()
    block = struct.pack("<H", 0x7E00) + bytes(32)
    made.tensors["blk.0.ffn_up.weight"] = {"dims": [64, 128], "kind": 8, "data": block * (64 * 128 // 32)}
    file = tmp_path / "x.gguf"
    file.write_bytes(made.bytes())
    with (
        np.errstate(all="raise"),
        pytest.raises(ModelError, match=r"blk\.0\.ffn_up\.weight contains NaN"),
    ):
        install_gguf(file, home.models, "x", lambda *_: None)
    assert not list(home.models.iterdir())
