"""What lies beside an adapter's weights, mutated: tokenizer, template, generation settings, held against its base and asked with."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune_local.adapters.companions import companions, prompt_setup
from finetune_local.data.conversation import Message, RowRejected
from finetune_local.export.gguf.vocabulary import read_vocabulary
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.base.tokenizer_files import template_of
from finetune_local.system.errors import FinetuneError
from fuzz.children import quick_children
from fuzz.mutate import mutate_bytes, mutate_json_text
from tiny import CHATML, tiny_model

COUNTS = (60, 10_000)

_CHAT = [Message("system", "Be brief."), Message("user", "Hi 你好 <|tool|>")]


def prepare(folder: Path) -> Any:
    """A base, and an adapter's files as trainers write them."""
    quick_children()
    base = tiny_model(folder / "base", "qwen2", vocab=390)
    config = json.loads((base / "tokenizer_config.json").read_text("utf-8"))
    added = {"380": {"content": "<|tool|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}}
    files = {
        "tokenizer.json": (base / "tokenizer.json").read_bytes(),
        "tokenizer_config.json": json.dumps(
            {**config, "added_tokens_decoder": added, "chat_template": CHATML}
        ).encode(),
        "special_tokens_map.json": json.dumps(
            {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"}
        ).encode(),
        "added_tokens.json": json.dumps({"<|tool|>": 380, "<|note|>": 381}).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [2, 0], "temperature": 0.7}).encode(),
        "chat_template.jinja": CHATML.encode(),
    }
    return ModelFolder.open(base), files


def attempt(prepared: Any, draw: random.Random, folder: Path) -> None:
    """Some of the files, one of them damaged; only the app's own errors may come."""
    model, files = prepared
    adapter = folder / "adapter"
    shutil.rmtree(adapter, ignore_errors=True)
    adapter.mkdir()
    chosen = draw.sample(sorted(files), draw.randint(1, len(files)))
    for name in chosen:
        content: bytes = files[name]
        if name == chosen[0]:
            content = mutate_json_text(content, draw) if name.endswith(".json") else mutate_bytes(content, draw)
        (adapter / name).write_bytes(content)
    with suppress(FinetuneError):
        template_of(adapter)
    with suppress(FinetuneError, RowRejected):
        found = companions(model.path, adapter)
        assert all(isinstance(text, str) for text in found.sentences)
        asked = prompt_setup(model.path, adapter)
        ids = asked.tokenizer.prompt_ids(_CHAT)
        asked.tokenizer.text(ids)
        assert all(i >= 0 for i in asked.stop_ids)
    with suppress(FinetuneError):
        read_vocabulary(model, adapter, 390)
