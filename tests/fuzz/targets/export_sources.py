"""What an export reads of a base before it writes: settings and tokenizer of a model folder, for a merged folder and for a GGUF."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from finetune_local.export.merged_config import merged_config
from finetune_local.export.targets import Source, targets
from finetune_local.export.verification.receivers import mlx_lm_limit, mlx_lm_note
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import FinetuneError
from fuzz.mutate import mutate_json
from tiny import tiny_model

COUNTS = (150, 20_000)
_FILES = ("config.json", "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")


def prepare(folder: Path) -> dict[str, Any]:
    """A base of each family that a GGUF can be made of, and one with tables of positions."""
    bases = {family: tiny_model(folder / family, family) for family in ("llama", "qwen3", "gemma3_text")}
    return {"bases": bases}


def attempt(prepared: Any, draw: random.Random, folder: Path) -> None:
    """One file changed, then all that is looked at before anything is written."""
    family = draw.choice(sorted(prepared["bases"]))
    base = folder / "base"
    shutil.copytree(prepared["bases"][family], base)
    name = draw.choice(_FILES)
    values = json.loads((base / name).read_text("utf-8"))
    (base / name).write_text(json.dumps(mutate_json(values, draw), ensure_ascii=True), "utf-8")
    model = ModelFolder.open(base)
    source = Source(model, None)
    config = merged_config(model.config, "float32", draw.random() < 0.5, (2, 0))
    mlx_lm_limit(config)
    mlx_lm_note(config)
    for key, quant in (("merged", "float32"), ("gguf", "f16")):
        try:
            targets()[key].check_source(source)
            targets()[key].notes(source)
            targets()[key].size(source, quant)
        except FinetuneError:
            continue
