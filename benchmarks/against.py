"""This checkout beside another one (an earlier commit): tokens per CPU-second of the same training, run in turns.

    git worktree add ../before 395eb47
    python benchmarks/against.py ../before [--model FOLDER_OR_NAME] [--data F] [--backend torch] [--method lora] [--rounds 4]

Each round trains the same run once with each checkout, in changing order, so that a busy machine slows both. Speed is the
trained tokens by the CPU-seconds of the loop, as `train --json` tells them: what it takes to start is not in it. Both have
the same seed, so the losses must be equal. Exit code 1 where they are not, or where the median ratio is below --least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def main() -> int:
    """Train in turns and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("other", type=Path, metavar="OTHER_CHECKOUT")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=HERE / "assets" / "example" / "orders.jsonl")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--least", type=float, default=0.97, help="the least ratio that is no loss of speed")
    given = parser.parse_args()
    checkouts = {"here": HERE, "other": given.other.resolve()}
    ratios, equal = [], True
    for number in range(given.rounds):
        order = list(checkouts) if number % 2 == 0 else list(reversed(checkouts))
        done = {name: trained(checkouts[name], given) for name in order}
        speed = {name: one["trained_tokens"] / one["cpu_seconds"] for name, one in done.items()}
        ratios.append(speed["here"] / speed["other"])
        equal = equal and done["here"]["last_loss"] == done["other"]["last_loss"]
        print(f"round {number + 1}: {speed['here']:.0f} tokens per CPU-second here, {speed['other']:.0f} there, "
              f"ratio {ratios[-1]:.3f}; last loss {done['here']['last_loss']:.6f}, {done['other']['last_loss']:.6f}", flush=True)  # fmt: skip
    middle = statistics.median(ratios)
    print(f"median ratio {middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) in {given.rounds} rounds; "
          f"losses {'equal' if equal else 'NOT equal'}")  # fmt: skip
    return int(not equal or middle < given.least)


def trained(checkout: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The summary of one run by a checkout's own code, in a home of its own."""
    paths = os.pathsep.join(str(checkout / part) for part in ("app", "backends"))
    steps = str(given.steps)
    with tempfile.TemporaryDirectory(prefix="against-") as home:
        options = {
            "--data": str(given.data.resolve()), "--model": given.model, "--backend": given.backend, "--method": given.method,
            "--precision": given.precision, "--max-steps": steps, "--batch-size": str(given.batch_size), "--validation": "0",
            "--sample-rows": "0", "--checkpoint-every": steps, "--validate-every": steps, "--micro-batch-tokens": "1024",
            "--max-length": "512", "--learning-rate": "1e-3",
        }  # fmt: skip
        command = [
            sys.executable,
            "-m",
            "finetune_local",
            "train",
            "--json",
            *[part for pair in options.items() for part in pair],
        ]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths, "FINETUNE_LOCAL_HOME": home}
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=checkout, env=environment)
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr or done.stdout}")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


if __name__ == "__main__":
    sys.exit(main())
