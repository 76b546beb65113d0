"""Several adapters trained at once on one base against one after another: the same rows, steps and adapters both ways.

    python benchmarks/multi_adapter.py --model smollm2-135m --adapters 4 --rows 2

Both ways are measured in alternation in one process; time is CPU-seconds (the whole time a card needs is waited for). The losses
of both ways are printed beside each other: they must be the same.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from finetune_local.backend import Session, StepRequest, backends
from finetune_local.models.resolve import resolve
from finetune_local.spec.batch import Batch
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import RunSpec, parse_spec, plan_method
from finetune_local.system import paths

RATE = 1e-3


def main() -> None:
    """Measure and print one JSON line."""
    given = _arguments()
    model = resolve(given.model, paths.home(None), lambda *_: None)
    backend = backends()[given.backend]
    specs = [_spec(number, given.method) for number in range(given.adapters)]
    sessions: dict[str, Session] = {}
    for way in ("alone", "together"):
        sessions[way] = backend.load(model.path, given.precision)
        for number, spec in enumerate(specs):
            sessions[way].attach(str(number), plan_method(spec.method, model.info()), number)
            sessions[way].prepare(str(number), spec.training)
    sft, seconds, losses = objectives()["sft"], {"alone": 0.0, "together": 0.0}, {"alone": [], "together": []}
    vocabulary = model.vocabulary
    for step in range(given.steps + 1):
        requests = [
            StepRequest(str(n), [_batch(given.rows, given.length, step * 100 + n, vocabulary)], sft, RATE)
            for n in range(given.adapters)
        ]
        for way in ("alone", "together"):
            began = time.process_time() if sessions[way].device.kind == "cpu" else time.perf_counter()
            if way == "together":
                results = sessions[way].step_many(requests)
            else:
                results = [sessions[way].step_many([request])[0] for request in requests]
            now = time.process_time() if sessions[way].device.kind == "cpu" else time.perf_counter()
            if step:  # the first warms up
                seconds[way] += now - began
            losses[way].append([result.loss for result in results])
    apart = float(np.abs(np.array(losses["alone"]) - np.array(losses["together"])).max())
    print(
        json.dumps(
            {
                "model": model.name,
                "backend": backend.name,
                "device": sessions["alone"].device.name,
                "precision": given.precision,
                "adapters": given.adapters,
                "rows_each": given.rows,
                "length": given.length,
                "seconds_alone": round(seconds["alone"], 2),
                "seconds_together": round(seconds["together"], 2),
                "ratio": round(seconds["alone"] / seconds["together"], 3),
                "losses_differ_by": apart,
            }
        )
    )


def _spec(number: int, method: str) -> RunSpec:
    settings: dict[str, Any] = {"key": method, "rank": (8, 16, 4, 32)[number % 4]}
    return parse_spec({"method": settings, "training": {"optimizer": "adamw"}}, "benchmark")


def _batch(rows: int, length: int, seed: int, vocabulary: int) -> Batch:
    """Random rows of about this length; the last fifth of each is supervised."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(length * 3 // 4, length + 1, rows).astype(np.int32)
    ids = rng.integers(0, vocabulary, (rows, int(lengths.max()))).astype(np.int32)
    places = np.arange(ids.shape[1])[None]
    return Batch(ids, lengths, (places >= lengths[:, None] * 4 // 5) & (places < lengths[:, None]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--method", default="lora")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2, help="rows of each adapter in a step")
    parser.add_argument("--length", type=int, default=64, help="longest row")
    parser.add_argument("--steps", type=int, default=6)
    return parser.parse_args()


if __name__ == "__main__":
    main()
