"""Verbs that only look around, with every connection refused; the whole journey is in test_journey.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune_local.system import paths
from finetune_local.system.paths import Home


def cli(*arguments: object) -> Any:
    """What the command prints last, as JSON."""
    command = [sys.executable, "-m", "finetune_local", *map(str, arguments), "--json"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def test_looking_around_needs_no_network(tiny: Path, home: Home, no_network: None) -> None:
    assert cli("methods")
    assert cli("doctor")["backend"]
    assert cli("runs") == []
    assert cli("data", "inspect", paths.assets() / "example" / "orders.jsonl", "--model", tiny)["used"] == 160
    for verb in ("models", "adapters"):
        cli(verb)
