"""Mutated inputs: every target in fuzz/targets is given inputs of fixed seeds; none may end in a traceback, a hang, 2 GB or a death.

pytest tests/fuzz                 a minute: the same inputs each time
pytest tests/fuzz --thorough      an hour: many more, beginning at the same ones
pytest tests/fuzz --from-seed N   other ones
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TARGETS = sorted(file.stem for file in (HERE / "targets").glob("*.py") if file.stem != "__init__")
PATIENCE = 120
"""Seconds without a word after which a child is hanging where no alarm reaches it: in a library's own code."""

pytestmark = [pytest.mark.fuzz, pytest.mark.skipif(os.name == "nt", reason="the limits need a Unix system")]


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_end_in_a_sentence_or_are_used(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    few, many = _counts(name)
    count = many if request.config.getoption("--thorough") else few
    seed, last = int(request.config.getoption("--from-seed")), int(request.config.getoption("--from-seed")) + count
    faults: list[str] = []
    while seed < last and len(faults) < 20:
        seed = _child(name, seed, last, tmp_path, faults)
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults)


def _child(name: str, seed: int, last: int, folder: Path, faults: list[str]) -> int:
    """Try seeds in one child, as far as it lives; returns the seed to go on with."""
    places = os.pathsep.join(str(ROOT / part) for part in ("app", "backends", "tests"))
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-m", "fuzz.attempts", name, str(seed), str(last - seed), str(folder)]
    log = folder / "stderr"
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as child,
    ):
        assert child.stdout is not None
        at = None
        with _Watchdog(child) as watchdog:
            for line in child.stdout:
                watchdog.alive()
                said = json.loads(line)
                if said["event"] == "begin":
                    at = int(said["seed"])
                elif said["event"] == "fault":
                    faults.append(f"seed {said['seed']}: {said['what']}")
                elif said["event"] == "end" and said["peak"] > 2e9:
                    faults.append(f"seeds {seed} to {last}: {said['peak'] / 1e9:.1f} GB at the peak")
        code = child.wait()
    if code == 0:
        return last
    assert at is not None, f"{name} could not be prepared: {log.read_text('utf-8', 'replace')[-2000:]}"
    faults.append(f"seed {at}: the process ended with {code}: {log.read_text('utf-8', 'replace')[-1500:]}")
    return at + 1


class _Watchdog:
    """Ends a child that has said nothing for PATIENCE seconds."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        import threading

        self._child, self._timer = child, threading.Timer
        self._running = self._timer(PATIENCE, child.kill)

    def alive(self) -> None:
        self._running.cancel()
        self._running = self._timer(PATIENCE, self._child.kill)
        self._running.daemon = True
        self._running.start()

    def __enter__(self) -> _Watchdog:
        self._running.daemon = True
        self._running.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._running.cancel()


def _counts(name: str) -> tuple[int, int]:
    """How many inputs: in CI, and thoroughly. A target says it with COUNTS; read without importing it here."""
    import ast

    tree = ast.parse((HERE / "targets" / f"{name}.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "COUNTS":
            few, many = ast.literal_eval(node.value)
            return int(few), int(many)
    return 200, 20_000
