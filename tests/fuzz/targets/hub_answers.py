"""Answers of a hub, changed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from finetune_local.models.hub.answers import models_in, read_answer, repository_in
from finetune_local.models.hub.repository import choose
from finetune_local.models.hub.search import _hits
from finetune_local.system.paths import bad_name
from finetune_local.system.untrusted.text import ForeignTextError
from fuzz.mutate import mutate_json_text

COUNTS = (400, 40_000)

_FILES = [
    {"rfilename": "config.json", "size": 12, "blobId": "a" * 40},
    {"rfilename": "tokenizer.json", "size": 1200, "blobId": "b" * 40},
    {"rfilename": "model.safetensors", "size": 120, "lfs": {"sha256": "c" * 64, "size": 10**9}},
]
_REPOSITORY = json.dumps({"sha": "d" * 40, "siblings": _FILES, "cardData": {"license": "mit"}}).encode()
_MODEL = {"id": "org/one", "tags": ["license:mit", "x"], "config": {"model_type": "llama"}, "downloads": 9, "gated": False,
          "safetensors": {"total": 5}, "lastModified": "2026-01-01T00:00:00", "library_name": "transformers"}  # fmt: skip
_LIST = json.dumps([_MODEL, {**_MODEL, "id": "org/two"}]).encode()


def prepare(folder: Path) -> Any:
    """Nothing to prepare."""
    return None


def attempt(prepared: Any, draw: random.Random, folder: Path) -> None:
    """Read; what is accepted has names and sizes that can be used."""
    try:
        if draw.random() < 0.5:
            found = repository_in(read_answer([mutate_json_text(_REPOSITORY, draw)]))
            assert all(bad_name(file.name) is None and 0 <= file.size < 2**60 for file in found.files)
            choose("org/one", found.files)
        else:
            for hit in _hits(models_in(read_answer([mutate_json_text(_LIST, draw)]))):
                hit.name.encode("utf-8")
                assert hit.name.count("/") == 1 and hit.downloads >= 0
    except ForeignTextError as error:
        assert str(error)
