"""Folders with a tokenizer, of several families, one or two of their files changed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from finetune_local.data.conversation import Message, RowRejected
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from fuzz.children import quick_children
from fuzz.mutate import mutate_bytes, mutate_json
from sentencepiece_like import make_sentencepiece_like
from tiny import tiny_model

COUNTS = (120, 20_000)

FILES = (
    "tokenizer.json", "tokenizer.json", "tokenizer.json", "tokenizer_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "config.json", "generation_config.json", "chat_template.jinja",
)  # fmt: skip
PARTS: tuple[Any, ...] = (
    {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"},
    {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 1000},
    {"type": "Prepend", "prepend": "x" * 10_000},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA" * 40},
    {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}] * 40},
    {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 500, "normalizers": [], "decoders": []},
    {"type": "Split", "pattern": {"Regex": "(\\w|\\w\\w)*[^\\w]$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": "(?:(?:(?:a{999}){999}){999}){999}"}, "behavior": "Removed", "invert": True},
    {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    {"type": "FixedLength", "length": 0},
    {"type": "Metaspace", "replacement": "▁▁", "prepend_scheme": "always", "split": True},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}], "pair": [], "special_tokens": {}},
    {"type": "Strip", "content": " ", "start": 2**40, "stop": 0, "strip_left": True, "strip_right": True},
    {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True},
    {"type": "ByteLevel"}, {"type": "Nothing"}, {}, [], "NFC",
)  # fmt: skip
CHAT = [Message("user", "What is the capital of France?" + "a" * 60), Message("assistant", "Paris, 法国 \U0001f642")]


def prepare(folder: Path) -> Any:
    """The folders; children whose limits can be waited for. What only transformers can read is refused: it takes seconds."""
    quick_children()
    made = [tiny_model(folder / family, family) for family in ("llama", "qwen2", "gemma")]
    made.append(make_sentencepiece_like(folder / "sentencepiece"))
    for number, place in enumerate(made):
        for weights in place.glob("*.safetensors"):
            weights.unlink()
        added = {
            "content": "<new>",
            "lstrip": True,
            "rstrip": False,
            "normalized": False,
            "single_word": False,
            "special": True,
        }
        (place / "special_tokens_map.json").write_text(
            json.dumps({"pad_token": added, "additional_special_tokens": ["<x>"]})
        )
        (place / "added_tokens.json").write_text(json.dumps({"<new>": 900, "<x>": 901}))
        if number % 2:
            config = json.loads((place / "tokenizer_config.json").read_text("utf-8"))
            config |= {
                "added_tokens_decoder": {"900": added},
                "tokenizer_class": "LlamaTokenizer",
                "chat_template": "{{ 1 }}",
            }
            (place / "tokenizer_config.json").write_text(json.dumps(config))
    return made


def attempt(prepared: list[Path], draw: random.Random, folder: Path) -> None:
    """Load it and do all that is done with a tokenizer."""
    place = shutil.copytree(draw.choice(prepared), folder / "model")
    for name in sorted({draw.choice(FILES) for _ in range(draw.choice((1, 1, 2)))}):
        _change(place / name, draw)
    tokenizer = Tokenizer.load(place)
    assert tokenizer.eos_id >= 0 and tokenizer.pad_id >= 0
    tokenizer.names()
    for chat in (CHAT, [Message("system", "s"), *CHAT, *CHAT]):
        try:
            pieces = tokenizer.segments(chat)
        except RowRejected:
            continue
        ids = [i for part, _ in pieces for i in part]
        assert all(0 <= i <= tokenizer.largest_id for i in ids)
        tokenizer.text(ids), tokenizer.text(ids, special=True), tokenizer.pieces(ids[:50])
    tokenizer.raw_segments([("text", True), (" and more", False)])
    tokenizer.text([10**6, 5, tokenizer.eos_id])


def _change(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    if path.suffix != ".json" or draw.random() < 0.2:
        path.write_bytes(mutate_bytes(content, draw))
        return
    values = json.loads(content)
    if path.name == "tokenizer.json" and draw.random() < 0.4:
        values[draw.choice(("normalizer", "pre_tokenizer", "post_processor", "decoder", "padding", "truncation"))] = (
            draw.choice(PARTS)
        )
    elif path.name == "tokenizer.json" and draw.random() < 0.7:
        # Its vocabulary is nearly all of it: change the rest, and a little of the model.
        model = values.pop("model")
        values = mutate_json(values, draw)
        told = mutate_json({key: value for key, value in model.items() if key not in ("vocab", "merges")}, draw)
        if isinstance(values, dict) and isinstance(told, dict):
            values["model"] = {**told, "vocab": model["vocab"], "merges": model["merges"]}
    else:
        values = mutate_json(values, draw)
    path.write_text(json.dumps(values), "utf-8")
