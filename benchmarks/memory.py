"""Memory as predicted by models/memory/estimate.py beside the measured peak, each case in a process of its own.

    python benchmarks/memory.py --cases torch:lora:fp32 torch:lora-fa:fp32 mlx:lora:4-bit
    python benchmarks/memory.py --methods lora,dora,prefix --backend torch --precision bf16

A case is backend:method:precision, with ":checkpointed" after it for gradient checkpointing. It takes a few steps on random rows
of about --length tokens, a quarter of them supervised, as many as fill --tokens; rows differ in length, as real ones do. On a CPU
the peak is that of the resident process, libraries and loading included, on a card that of the tensors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
from methods import THREADS

from finetune_local.backend import backends
from finetune_local.models.memory.estimate import estimate
from finetune_local.models.resolve import resolve
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import DEFAULT_MODEL, parse_spec
from finetune_local.spec.tuners import presets
from finetune_local.system import paths
from finetune_local.training.setup import plan_for

SUPERVISED = 0.25


def main() -> None:
    """Measure each case in a child, print a line each."""
    given = _arguments()
    for name in THREADS:
        os.environ[name] = str(given.threads)
    if given.child:
        print(json.dumps(_measured(given.cases[0], given)))
        return
    cases = given.cases or [f"{given.backend}:{key}:{given.precision}" for key in given.presets.split(",")]
    print(
        "| backend | method | precision | predicted MB | measured MB | predicted / measured |\n|---|---|---|---|---|---|"
    )
    failed = 0
    for case in cases:
        command = [sys.executable, __file__, "--child", "--cases", case, *_options(given)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
        if done.returncode:
            failed += 1
            print(
                f"| {' | '.join(case.split(':'))} | failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]} | | |"
            )
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        predicted, peak = found["predicted"], found["peak"]
        backend, method, *precision = case.split(":")
        print(f"| {backend} | {method} | {', '.join(precision)} | {predicted / 1e6:.0f} | {peak / 1e6:.0f} | "
              f"{predicted / peak:.2f} |", flush=True)  # fmt: skip
        if given.parts:
            print(f"    parts, MB: { {k: round(v / 1e6) for k, v in found['parts'].items()} }", flush=True)
            print(f"    peak after each step, MB: {[round(v / 1e6) for v in found['peaks']]}", flush=True)
    sys.exit(1 if failed else 0)


def _measured(case: str, given: argparse.Namespace) -> dict[str, Any]:
    """The case in this process."""
    name, key, precision, *more = case.split(":")
    backend, model = backends()[name], resolve(given.model, paths.home(given.home), lambda *_: None)
    spec = parse_spec(
        {
            "backend": name,
            "model": {"id": str(model.path), "precision": precision},
            "method": {"key": key},
            "training": {"micro_batch_tokens": given.tokens, "gradient_checkpointing": "checkpointed" in more,
                         "optimizer": "adamw", "max_steps": given.steps, "attention": "full"},
        },
        case,
    )  # fmt: skip
    plan = plan_for(spec, model)
    session = backend.load(model.path, precision)  # type: ignore[arg-type]
    session.attach("measured", plan, 42, stored=model.read)
    session.prepare("measured", spec.training)
    peaks = [session.memory().peak_bytes]
    rng = np.random.default_rng(0)
    for _ in range(given.steps):
        batches = [_batch(rng, given, model.vocabulary) for _ in range(given.accumulate)]
        session.step(batches, objectives()["sft"], 1e-4)
        peaks.append(session.memory().peak_bytes)
    expected = estimate(model, spec, plan, session.device.kind)
    parts = ("weights", "trainable", "optimizer", "activations", "runtime")
    return {
        "predicted": expected.total,
        "peak": peaks[-1],
        "peaks": peaks,
        "parts": {part: getattr(expected, part) for part in parts},
    }


def _batch(rng: np.random.Generator, given: argparse.Namespace, vocabulary: int) -> Batch:
    """Random ids; the longest row has from three quarters of --length to all of it."""
    longest = int(rng.integers(given.length * 3 // 4, given.length + 1))
    rows = max(1, given.tokens // longest)
    lengths = np.minimum(rng.integers(longest * 4 // 5, longest + 1, rows), longest).astype(np.int32)
    lengths[0] = longest
    ids = rng.integers(0, vocabulary, (rows, longest)).astype(np.int32)
    places = np.arange(longest)[None]
    return Batch(ids, lengths, (places >= lengths[:, None] * (1 - SUPERVISED)) & (places < lengths[:, None]))


def _options(given: argparse.Namespace) -> list[str]:
    options = ["--model", given.model, *(["--home", given.home] if given.home else [])]
    for name in ("tokens", "length", "steps", "accumulate", "threads"):
        options += [f"--{name}", str(getattr(given, name))]
    return options


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="BACKEND:METHOD:PRECISION")
    parser.add_argument("--methods", default=",".join(presets()))
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=1024, help="of a micro-batch, with padding")
    parser.add_argument("--length", type=int, default=128, help="longest row")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches in a step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--parts", action="store_true", help="also the parts of the estimate, and the peak step by step"
    )
    parser.add_argument("--home", help="where models are")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
