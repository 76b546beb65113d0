"""From a file to an export by the command line, on each backend, with every connection refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_local.backend import Backend
from finetune_local.paths import Home

TRAIN = ("--max-steps", "12", "--learning-rate", "1e-2", "--rank", "4", "--validate-every", "6", "--sample-tokens", "4")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A few rows, English and Chinese, under a name with a space."""
    path = tmp_path / "my data 数据.jsonl"
    pairs = [("capital of France?", "Paris"), ("法国的首都", "巴黎"), ("one line", "text"), ("2 + 2", "4")] * 4
    rows = [
        {"messages": [{"role": "user", "content": f"{q} {i}"}, {"role": "assistant", "content": a}]}
        for i, (q, a) in enumerate(pairs)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def cli(*arguments: object, stdin: str = "") -> Any:
    """What the command prints last, as JSON."""
    command = [sys.executable, "-m", "finetune_local", *map(str, arguments), "--json"]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, encoding="utf-8", env=environment, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def test_import_train_chat_and_export(
    backend: Backend, tiny: Path, data: Path, home: Home, tmp_path: Path, no_network: None
) -> None:
    where = ("--model", tiny, "--backend", backend.name)
    trained = cli("train", "--data", data, "--run", "first", *where, *TRAIN)
    assert trained["backend"] == backend.name
    assert trained["steps"] == 12
    assert trained["last_loss"] < trained["first_loss"]
    assert Path(trained["adapter"]).is_relative_to(home.root)
    assert {"run", "method", "validation_loss", "trained_tokens", "supervised_tokens"} <= trained.keys()
    assert {"trainable_parameters", "seconds", "cpu_seconds", "peak_memory_bytes"} <= trained.keys()

    ask = ("generate", *where, "--prompt", "capital of France? 0", "--temperature", "0", "--max-tokens", "6")
    base, tuned = cli(*ask), cli(*ask, "--adapter", "first")
    assert base["prompt_tokens"] == tuned["prompt_tokens"]
    assert base["text"] != tuned["text"]
    told = cli(
        "chat", *where, "--adapter", "first", "--max-tokens", "4", stdin="one line 2\n/adapter base\nagain\n/quit\n"
    )
    assert told

    measured = cli("evaluate", *where, "--adapter", "first", "--data", data, "--few-shot", "1", "--max-tokens", "4")
    assert measured["tuned"]["loss"] != measured["base"]["loss"]
    for side in ("base", "few_shot", "tuned"):
        assert {"mean", "low", "high"} <= measured[side]["exact"].keys()

    merged = cli("export", "first", "--to", "merged", "--out", tmp_path / "merged 合并", *where)
    assert merged["gate"]["passed"] is True
    gguf = cli("export", "first", "--to", "gguf", "--out", tmp_path / "model.gguf", *where)
    assert gguf["gate"]["passed"] is True
    assert (tmp_path / "model.gguf").stat().st_size > 100_000

    again = cli("train", "--config", home.runs / "first" / "run.json", "--run", "second")
    assert again["last_loss"] == pytest.approx(trained["last_loss"], rel=1e-6)


def test_looking_around_needs_no_network(tiny: Path, data: Path, home: Home, no_network: None) -> None:
    assert cli("methods")
    assert cli("doctor")["backend"]
    assert cli("runs") == []
    assert cli("data", "inspect", data, "--model", tiny)["used"] == 16
    for verb in ("models", "adapters"):
        cli(verb)
