"""benchmarks/methods.py measures for real, goes on where it was, and lets no method that fails stop the others."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

from finetune_local.backend import Backend, backends
from finetune_local.system import paths

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "methods.py"


def bench(model: Path, results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--model", str(model), "--results", str(results), "--threads", "1"]
    return subprocess.run([*command, *more], capture_output=True, encoding="utf-8", check=False)


def test_a_method_is_measured_once(backend: Backend, tiny: Path, tmp_path: Path, home: paths.Home) -> None:
    results = tmp_path / "成绩" / "methods-x.jsonl"
    how = ("--only", "lora", "--backend", backend.name)
    done = bench(tiny, results, *how, "--steps", "6", "--batch-size", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [json.loads(text) for text in results.read_text("utf-8").splitlines()]
    assert line["method"] == "lora" and line["backend"] == backend.name and "error" not in line
    assert line["trainable_parameters"] == 2 * 16 * (128 + 96 + 96 + 128 + 3 * 192)
    assert 4 * line["trainable_parameters"] < line["adapter_bytes"] < 4 * line["trainable_parameters"] + 20_000
    assert line["loss_after"] < line["loss_before"] and line["exact_before"] == 0.0
    assert (line["rows"], line["held_out_rows"], line["precision"]) == (120, 40, "fp32")
    assert line["peak_memory_bytes"] > 1e8 and line["memory_expected_bytes"] > 1e8 and line["seconds"] > 0
    assert line["setup"]["steps"] == 6 and line["setup"]["model"] == tiny.name and line["machine"]["libraries"]
    assert not list(home.runs.iterdir())
    again = bench(tiny, results, *how, "--steps", "6", "--batch-size", "4")
    assert "measured already" in again.stdout and len(results.read_text("utf-8").splitlines()) == 1
    other = bench(tiny, results, *how, "--steps", "7", "--batch-size", "4")
    assert other.returncode != 0 and "steps = 6, not 7" in other.stderr


def test_what_fails_is_recorded_and_the_rest_goes_on(tiny: Path, tmp_path: Path) -> None:
    usable = next(name for name, backend in backends().items() if backend.missing() is None)
    broken = shutil.copytree(tiny, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][:] = float("nan")
    save_file(weights, broken / "model.safetensors")
    results = tmp_path / "methods-x.jsonl"
    done = bench(broken, results, "--only", "lora,dora", "--backend", usable, "--steps", "2")
    assert done.returncode == 1
    lines = [json.loads(text) for text in results.read_text("utf-8").splitlines()]
    assert [line["method"] for line in lines] == ["lora", "dora"]
    assert all(line["error"] == "ModelError" and "up_proj" in line["message"] for line in lines), lines
    assert not any(str(place) in line["message"] for line in lines for place in (SCRIPT.parents[1], "/tmp/"))
