"""An import, a new run, a new name and the trash are hurt at each of their calls to the file system: see writers.py."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HOWS = ("kill", "power", "power-data", str(errno.EIO), str(errno.EROFS))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def test_nothing_is_lost() -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as place:
        command = [sys.executable, str(Path(__file__).with_name("writers.py")), place, *HOWS]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=900, check=False)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == 5 * len(HOWS), done.stderr[-3000:]
    assert sum(line["tried"] for line in told) > 300
    assert [line for line in told if line["lost"]] == []
