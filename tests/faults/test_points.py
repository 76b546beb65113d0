"""A run is ended at one call to the file system after the other, goes on, and nothing of it is lost: see points.py.

A sample of the calls, another one for each way to fail; --thorough tries every call in every way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

HOWS = {
    "kill": 12,
    "power": 12,
    "power-data": 20,
    "kill-again": 24,
    "power-again": 24,
    "EIO": 24,
    "ENOSPC": 30,
    "EACCES": 40,
    "EMFILE": 40,
    "EROFS-lasting": 30,
}
"""Ways to fail, and of how many calls one is tried where time is short."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What one process found that tried them all, on a disk in memory where there is one: a run waits for the disk often."""
    wishes = [f"{how}:{1 if request.config.getoption('--thorough') else every}" for how, every in HOWS.items()]
    command = [sys.executable, str(Path(__file__).with_name("points.py"))]
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as place:
        done = subprocess.run(
            [*command, place, *wishes], capture_output=True, encoding="utf-8", timeout=7000, check=False
        )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(wishes), done.stderr[-3000:]
    return {line["how"]: line for line in lines}


@pytest.mark.parametrize("how", HOWS)
def test_nothing_is_lost(how: str, told: dict[str, dict[str, Any]]) -> None:
    assert told[how]["calls"] > 250 and told[how]["tried"] >= told[how]["calls"] // HOWS[how]
    assert told[how]["lost"] == []
