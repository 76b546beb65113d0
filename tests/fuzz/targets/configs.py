"""Files of settings: run.json and run.toml given with --config, mutated as bytes and as values; preferences."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from finetune_local.spec import config_file
from finetune_local.spec.config_file import read_config, sections
from finetune_local.spec.run import as_tables, parse_spec
from fuzz.mutate import mutate_bytes, mutate_json, mutate_json_text

COUNTS = (400, 40_000)

TABLES = {
    "name": "my run", "goal": "balanced", "backend": "torch", "model": {"id": "smollm2-135m", "precision": "bf16", "rope_factor": 2.0},
    "data": {"files": ["a.jsonl"], "validation": 0.1, "columns": ["prompt=q"], "scrub": ["email"]},
    "method": {"key": "lora", "rank": 8, "alpha": 16.0, "rank_pattern": ["q_proj=4"], "targets": ["q_proj"]},
    "training": {"max_steps": 12, "learning_rate": 1e-4, "seed": 7}, "adapters": [{"name": "a", "method": {"key": "dora"}}],
}  # fmt: skip


def prepare(folder: Path) -> bytes:
    """The same settings as TOML."""
    for tables in sections(TABLES, "test"):
        parse_spec(tables, "test")
    return config_file.as_toml({key: value for key, value in TABLES.items() if key != "adapters"}).encode()


def attempt(prepared: bytes, draw: random.Random, folder: Path) -> None:
    """Read and parse; what is accepted comes back as it was."""
    if draw.random() < 0.5:
        file = folder / "run.json"
        file.write_bytes(mutate_json_text(json.dumps(TABLES).encode(), draw))
    elif draw.random() < 0.5:
        file = folder / "run.toml"
        file.write_bytes(mutate_bytes(prepared, draw))
    else:
        return _parse(mutate_json(TABLES, draw))
    return _parse(read_config(file))


def _parse(tables: Any) -> None:
    if not isinstance(tables, dict):
        return  # read_config() gives no such thing
    for one in sections(tables, "--config"):
        spec = parse_spec(one, "--config")
        assert parse_spec(json.loads(json.dumps(as_tables(spec))), "again") == spec
