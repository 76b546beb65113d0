"""The whole journey by the command line, on each backend, with every connection refused: data in, train, chat, evaluate, export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_local.backend import Backend
from finetune_local.system.paths import Home

ARGUMENTS = ("--max-steps", "10", "--batch-size", "4", "--learning-rate", "5e-3", "--rank", "8", "--seed", "1")


def cli(*arguments: str, code: int = 0, stdin: str = "") -> list[Any]:
    """All JSON lines that a command printed; asserts its exit code and that it showed no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "finetune_local", *arguments, "--json"],
        input=stdin, capture_output=True, encoding="utf-8", check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "训练 data.jsonl"
    rows = [{"prompt": f"say {i}", "completion": f"好 {i % 3} ok"} for i in range(40)]
    rows.insert(3, {"prompt": "no answer"})
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def test_from_data_to_export_with_every_socket_refused(
    home: Home, tiny: Path, data: Path, backend: Backend, no_network: None, tmp_path: Path
) -> None:
    inspected = cli("data", "inspect", str(data), "--model", str(tiny))[-1]
    assert (inspected["rows"], inspected["used"]) == (41, 40)
    assert inspected["rejected"][0]["line"] == 4

    events = cli("--data", str(data), "--model", str(tiny), "--backend", backend.name, "--run", "我的 run", *ARGUMENTS)
    trained = events[-1]
    assert {"run", "adapter", "backend", "method", "steps", "first_loss", "last_loss", "validation_loss", "trained_tokens",
            "supervised_tokens", "trainable_parameters", "seconds", "cpu_seconds", "peak_memory_bytes"} <= set(trained)  # fmt: skip
    assert sum(e.get("event") == "step" for e in events) == 10
    assert trained["last_loss"] < trained["first_loss"]
    adapter = trained["adapter"]

    # The other backend answers with it, if there is one here.
    for name in {"torch", "mlx"} & set(os.environ.get("FINETUNE_LOCAL_EXPECT_BACKENDS", backend.name).split(",")):
        answer = cli("generate", "--model", str(tiny), "--adapter", adapter, "--prompt", "say 1", "--temperature", "0",
                     "--max-tokens", "8", "--backend", name)[-1]  # fmt: skip
        assert {"text", "prompt_tokens", "tokens", "seconds"} <= set(answer)
        assert answer["tokens"] <= 8
    talk = cli("chat", "--adapter", "我的 run", "--model", str(tiny), "--backend", backend.name, "--max-tokens", "4",
               stdin="say 1\n/adapter base\nsay 2\n/quit\n")  # fmt: skip
    assert len(talk) >= 2

    scores = cli("evaluate", "--model", str(tiny), "--adapter", adapter, "--data", str(data), "--few-shot", "2",
                 "--max-tokens", "6", "--limit", "6", "--backend", backend.name)[-1]  # fmt: skip
    assert scores["tuned"]["loss"] < scores["base"]["loss"]
    assert set(scores["tuned"]["exact"]) >= {"mean", "low", "high"}

    for target, quant, out in (("merged", None, "merged 合并"), ("gguf", "f16", "模型 f16.gguf")):
        options = ["--quant", quant] if quant else []
        made = cli(
            "export", "我的 run", "--to", target, *options, "--out", str(tmp_path / out), "--backend", backend.name
        )
        assert made[-1]["gate"]["passed"] is True, made[-1]
        assert all(Path(file).exists() for file in made[-1]["files"])


def test_a_run_is_repeated_from_its_run_json(home: Home, tiny: Path, data: Path, backend: Backend) -> None:
    first = cli("--data", str(data), "--model", str(tiny), "--backend", backend.name, "--run", "one", *ARGUMENTS)
    config = home.runs / "one" / "run.json"
    again = cli("train", "--config", str(config), "--run", "two")
    curves = [[e["loss"] for e in events if e.get("event") == "step"] for events in (first, again)]
    assert curves[0] == curves[1]


def test_nothing_is_left_of_a_run_whose_data_cannot_be_used(home: Home, tiny: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"messages": []}\n{"messag', "utf-8")
    told = cli("--data", str(bad), "--model", str(tiny), "--run", "mine", code=2)
    assert told[-1]["error"] == "DataError"
    assert not (home.runs / "mine").exists()


def test_a_rank_too_high_is_refused_before_anything_is_loaded(home: Home, tiny: Path, data: Path) -> None:
    told = cli("--data", str(data), "--model", str(tiny), "--rank", "4000", code=2)
    assert "--rank" in told[-1]["message"]
    assert list(home.runs.iterdir()) == []


def test_the_backends_agree(home: Home, tiny: Path, data: Path) -> None:
    from finetune_local.backend import backends

    if any(b.missing() for b in backends().values()):
        pytest.skip("parity needs both backends; CI has them (FINETUNE_LOCAL_EXPECT_BACKENDS)")
    for method in ("lora", "dora"):
        compared = cli("parity", "--data", str(data), "--model", str(tiny), "--method", method, "--steps", "6")[-1]
        assert len(compared["torch"]) == len(compared["mlx"]) == compared["steps"] == 6
        assert compared["max_difference"] <= 1e-3
        assert compared["torch"][0] != compared["torch"][5]
