"""Reading takes little memory, whatever the size of the file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_PEAK = """
import sys
from finetune_local.data.readers.read import read
n = sum(1 for _ in read(sys.argv[1:]))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(n, int(peak.split()[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
@pytest.mark.parametrize("name", ["big.jsonl", "big.json", "big.csv", "big.txt"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}-{name}"
        with path.open("w", encoding="utf-8") as file:
            file.write({"big.json": "[", "big.csv": "prompt,completion\n"}.get(name, ""))
            for i in range(count):
                file.write({"big.json": "," if i else "", "big.csv": f"{i},"}.get(name, ""))
                file.write("word 词 " * 200 if name in ("big.csv", "big.txt") else _long(i))
                file.write("\n")
            file.write("]" if name == "big.json" else "")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(path)], env=environment, capture_output=True, check=True
        )
        rows_read, kilobytes = map(int, done.stdout.split())
        assert rows_read >= count // 10
        if count > 1000:
            assert path.stat().st_size > 50e6
        path.unlink()
        return kilobytes

    assert peak(32_000) - peak(100) < 40_000


def _long(i: int) -> str:
    return json.dumps({"prompt": f"{i} " + "word 词 " * 120, "completion": "好" * 50})
