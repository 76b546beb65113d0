"""JSON and TOML texts given to the guarded readers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from finetune_local.system.untrusted.text import ForeignTextError, deeper_than, parse_json, parse_toml
from fuzz.mutate import mutate_bytes, mutate_json_text

COUNTS = (1_000, 100_000)

JSON = json.dumps({"a": [1, 2.5, {"b": [None, True, "x \\u00e9"]}], "n": 12, "s": "text", "t": [[1, 2], [3]]}).encode()
TOML = b'model = "x"\n[training]\nsteps = 12\nrates = [1.5, 2e3]\n[[adapters]]\nname = "a"\n'


def prepare(folder: Path) -> Any:
    """Nothing to prepare."""
    return None


def attempt(prepared: Any, draw: random.Random, folder: Path) -> None:
    """Parse; only the one error may come, and what is accepted can be walked without recursion trouble."""
    try:
        if draw.random() < 0.5:
            assert not deeper_than(parse_json(mutate_json_text(JSON, draw)), 64)
        else:
            parse_toml(mutate_bytes(TOML, draw))
    except ForeignTextError as error:
        assert str(error)
