from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from finetune_local.system.machine import library_versions, machine, memory_limit, nvidia_cards, processors


def test_this_machine() -> None:
    found = machine()
    assert found.processors >= 1
    assert 1 << 28 < found.memory_bytes < 1 << 50
    assert 0 < found.memory_free_bytes <= found.memory_bytes
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.system.split()[0] in ("Linux", "macOS", "Windows")


def test_a_containers_limits_count(tmp_path: Path) -> None:
    free = processors(tmp_path)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert memory_limit(tmp_path) == 1 << 62
    assert processors(tmp_path) == free
    (tmp_path / "memory.max").write_text("2147483648\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert memory_limit(tmp_path) == 2 << 30
    assert processors(tmp_path) == 1


def test_the_older_place_of_the_memory_limit(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1073741824\n")
    assert memory_limit(tmp_path) == 1 << 30


def driver(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.skipif(os.name == "nt", reason="the stand-in driver is a shell script")
def test_cards_are_what_the_driver_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, "echo 'NVIDIA GeForce RTX 4090, 24564, 570.1'; echo 'NVIDIA A2, 15356, 570.1'", monkeypatch)
    first, second = nvidia_cards()
    assert (first.name, first.memory_bytes, first.driver) == ("NVIDIA GeForce RTX 4090", 24564 << 20, "570.1")
    assert second.name == "NVIDIA A2"


@pytest.mark.skipif(os.name == "nt", reason="the stand-in driver is a shell script")
@pytest.mark.parametrize("script", ["exit 9", "echo no devices were found", "printf '\\377\\376'"])
def test_a_broken_driver_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    driver(tmp_path, script, monkeypatch)
    assert nvidia_cards() == ()


def test_no_driver_is_no_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_cards() == ()


def test_versions_without_importing() -> None:
    found = library_versions(("numpy", "no-such-package"))
    assert set(found) == {"numpy"}
