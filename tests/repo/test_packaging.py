"""The setup script and the locks: they fit the project, each other, and the words of the README."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "packaging" / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    return importlib.import_module("engine")


def pins(name: str) -> dict[str, str]:
    """package -> version of a lock."""
    text = (LOCKS / f"{name}.txt").read_text("utf-8")
    return dict(re.findall(r"(?m)^([a-z0-9._-]+)==([^\s;]+)", text))


def named(requirement: str) -> str:
    """The package a requirement of pyproject.toml names, in the index's spelling."""
    return re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("_", "-")


@pytest.mark.parametrize("extra", list(EXTRAS))
def test_a_lock_holds_all_its_extra_asks_for(extra: str) -> None:
    wanted = {named(r) for r in [*PROJECT["dependencies"], *EXTRAS[extra]]}
    assert wanted - set(pins(extra)) == set(), "run packaging/make_locks.py"


def test_locks_are_cut_from_one_set() -> None:
    whole = pins("everything")
    for extra in EXTRAS:
        assert {k: v for k, v in pins(extra).items() if whole.get(k) != v} == {}


def test_only_the_cuda_lock_brings_cuda() -> None:
    assert any(name.startswith("nvidia-") for name in pins("cuda"))
    for extra in set(EXTRAS) - {"cuda"}:
        assert [name for name in pins(extra) if name.startswith(("nvidia-", "cuda-", "triton"))] == []


def test_an_old_python_gets_a_sentence() -> None:
    """The script must parse on any Python 3; its version check is tried by pretending."""
    code = (
        "import sys; sys.version_info = (3, 9, 6, 'final', 0); sys.argv = ['packaging/run.py', 'demo'];"
        "exec(compile(open('packaging/run.py', encoding='utf-8').read(), 'run.py', 'exec'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs Python 3.11 or newer, but this is Python 3.9" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("system", "machine", "card", "wanted", "expected", "warned"),
    [
        ("Darwin", "arm64", "", "auto", "mlx", False),
        ("Linux", "x86_64", "NVIDIA RTX 4090", "auto", "cuda", False),
        ("Windows", "AMD64", "NVIDIA RTX 4090", "auto", "cuda", False),
        ("Linux", "x86_64", "", "auto", "cpu", False),
        ("Linux", "x86_64", "NVIDIA RTX 4090", "cpu", "cpu", True),
        ("Darwin", "arm64", "", "cpu", "cpu", True),
        ("Linux", "x86_64", "", "cuda", "cuda", True),
    ],
)
def test_the_engine_fits_the_machine(
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    card: str,
    wanted: str,
    expected: str,
    warned: bool,
) -> None:
    monkeypatch.setattr(engine.platform, "system", lambda: system)
    monkeypatch.setattr(engine.platform, "machine", lambda: machine)
    monkeypatch.setattr(engine, "nvidia_card", lambda: card)
    choice = engine.choose(wanted)
    assert choice.engine == expected
    assert bool(choice.warning) is warned


def test_the_cpu_build_is_asked_for_where_it_can_be_had(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.platform, "system", lambda: "Linux")
    monkeypatch.setattr(engine, "reachable", lambda _: True)
    arguments, remark = engine.torch_requirement("cpu", "2.13.0")
    assert arguments == ["torch==2.13.0+cpu", "--extra-index-url", engine.CPU_INDEX]
    assert remark == ""
    monkeypatch.setattr(engine, "reachable", lambda _: False)
    arguments, remark = engine.torch_requirement("cpu", "2.13.0")
    assert arguments == ["torch==2.13.0"]
    assert "CUDA build" in remark


def test_the_example_is_what_its_script_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "packaging"))
    module = importlib.import_module("make_example")
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    module.main()
    for name in ("orders.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_text("utf-8") == (ROOT / "assets/example" / name).read_text("utf-8")


def test_no_held_out_order_is_trained_on() -> None:
    def answers(name: str) -> list[str]:
        lines = (ROOT / "assets/example" / name).read_text("utf-8").splitlines()
        return [json.loads(line)["messages"][1]["content"] for line in lines]

    train, held_out = answers("orders.jsonl"), answers("held_out.jsonl")
    assert len(set(train)) == 160
    assert len(set(held_out)) == 24
    assert set(train) & set(held_out) == set()
