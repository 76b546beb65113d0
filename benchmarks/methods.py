"""Every method side by side: the same model, rows, steps and seed for each, on every backend installed here.

    python benchmarks/methods.py                          measures what is not measured yet; may be stopped at any time
    python benchmarks/methods.py --only lora,dora --backend torch --again
    python benchmarks/methods.py --report                 writes the table and the chart of docs/methods.md

Each method trains in a worker process of its own, one after another, exactly as `finetune-local train` does, with the rate that
the app chooses for it; then `finetune-local evaluate` compares base and tuned model on the held-out rows. Each result is one line
of benchmarks/results/methods-CPU.jsonl, written as it comes: a method that fails is a line too, with its error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpu import cpu_name, slug

from finetune_local import __version__
from finetune_local.adapter_format import CONFIG, WEIGHTS
from finetune_local.backend import Backend, backends
from finetune_local.models.folder import ModelFolder, sha256_of
from finetune_local.models.memory.estimate import estimate
from finetune_local.models.resolve import resolve
from finetune_local.spec.run import DEFAULT_MODEL, parse_spec
from finetune_local.spec.tuners import presets
from finetune_local.system import paths
from finetune_local.system.errors import FinetuneError
from finetune_local.system.machine import machine, processors
from finetune_local.training.events import Event, Started
from finetune_local.training.run_folder import follow, runs
from finetune_local.training.setup import check_before_loading, plan_for

ROOT = Path(__file__).resolve().parent.parent
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
EVERY_ROW = 1_000_000


@dataclass(frozen=True)
class Setup:
    """What is equal for all methods. A file of results holds one setup; `data` is a file's name, `held_out` a share."""

    model: str
    data: str
    data_sha256: str
    steps: int
    batch_size: int
    held_out: float
    seed: int
    precision: str
    threads: int


def main() -> None:
    """Measure what is missing, or write the report."""
    given = _arguments()
    if given.report:
        sys.exit(subprocess.run([sys.executable, ROOT / "packaging" / "make_docs.py"], check=False).returncode)
    for name in THREADS:
        os.environ[name] = str(given.threads)  # workers inherit it
    home = paths.home(given.home)
    model = resolve(given.model, home, lambda *_: None)
    setup = Setup(model.name, given.data.name, sha256_of(given.data), given.steps, given.batch_size, given.held_out,
                  given.seed, given.precision, given.threads)  # fmt: skip
    results = given.results or ROOT / "benchmarks" / "results" / f"methods-{slug(cpu_name())}.jsonl"
    done = _done(results, setup)
    results.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    for key, backend in _wanted(given.only, given.backend):
        if (key, backend.name) in done and not given.again:
            print(f"{key} on {backend.name}: measured already", flush=True)
            continue
        print(f"{key} on {backend.name} …", flush=True)
        found = measure(key, backend, setup, model, given.data, home)
        line = {"method": key, "backend": backend.name, **found, "date": datetime.date.today().isoformat(),
                "app_version": __version__, "machine": machine_facts(backend), "setup": asdict(setup)}  # fmt: skip
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        failed += "error" in found
        print(_said(found), flush=True)
    print(f"results: {results}")
    sys.exit(1 if failed else 0)


def measure(
    key: str, backend: Backend, setup: Setup, model: ModelFolder, data: Path, home: paths.Home
) -> dict[str, Any]:
    """Train and evaluate one method; where that fails, {"error": its class, "message"}."""
    with tempfile.TemporaryDirectory(prefix="methods-") as scratch:
        run = None
        try:
            spec, _ = check_before_loading(
                parse_spec(tables(key, backend, setup, model, data), key), home, lambda *_: None
            )
            run = runs.create(paths.Home(Path(scratch)), spec)
            return train(run, home) | _sizes(run, model, backend) | _evaluate(run, model, home)
        except KeyboardInterrupt:
            if run is not None:
                run.kill()
            raise SystemExit("\nstopped; the same command goes on with what is not measured yet") from None
        except (FinetuneError, RuntimeError) as error:  # RuntimeError: a defect in the worker, with its traceback
            message = str(error).strip()[-2000:]
            # The line will be committed: it names no folder of this machine.
            places = {str(model.path): "MODEL", scratch: "RUNS", str(home.root): "HOME", str(ROOT): "REPOSITORY"}
            for place, word in places.items():
                message = message.replace(place, word)
            return {"error": type(error).__name__, "message": message}
        finally:
            if run is not None:
                shutil.rmtree(run.folder, ignore_errors=True)


def tables(key: str, backend: Backend, setup: Setup, model: ModelFolder, data: Path) -> dict[str, Any]:
    """The tables of a run of this method."""
    held = {} if "model.precision" in presets()[key].defaults else {"precision": setup.precision}
    return {
        "backend": backend.name,
        "model": {"id": str(model.path), **held},
        "data": {"files": [str(data.resolve())], "validation": setup.held_out},
        "method": {"key": key},
        "training": {
            "max_steps": setup.steps, "batch_size": setup.batch_size, "seed": setup.seed, "sample_rows": 0,
            "validate_every": setup.steps, "validation_rows": EVERY_ROW, "checkpoint_every": setup.steps,
        },
    }  # fmt: skip


def train(run: runs.Run, home: paths.Home) -> dict[str, Any]:
    """Time and CPU time count from the first step to the last validation, without loading."""
    started: Started | None = None
    event: Event | None = None
    for event in follow.follow(run, follow.start(run, home)):
        started = event if isinstance(event, Started) else started
    assert event is not None
    follow.raise_for(event, run)
    assert started is not None
    summary: Mapping[str, Any] = event.as_json()["summary"]
    copied = (
        "trainable_parameters",
        "seconds",
        "cpu_seconds",
        "peak_memory_bytes",
        "first_loss",
        "last_loss",
        "device",
    )
    return {name: summary[name] for name in copied} | {
        "precision": started.precision,
        "rows": started.rows,
        "held_out_rows": started.validation_rows,
    }


def _sizes(run: runs.Run, model: ModelFolder, backend: Backend) -> dict[str, Any]:
    spec = run.spec
    kind = next((device.kind for device in backend.devices() if device.id == spec.device), "cpu")
    return {
        "adapter_bytes": sum((run.adapter / name).stat().st_size for name in (CONFIG, WEIGHTS)),
        "memory_expected_bytes": estimate(model, spec, plan_for(spec, model), kind).total,
        "learning_rate": spec.training.learning_rate,
        "optimizer": spec.training.optimizer,
    }


def _evaluate(run: runs.Run, model: ModelFolder, home: paths.Home) -> dict[str, Any]:
    """Loss and greedy answers of the base and of the tuned model on the held-out rows."""
    spec = run.spec
    command = [sys.executable, "-P", "-m", "finetune_local", "evaluate", "--adapter", str(run.folder), "--model",
               str(model.path), "--home", str(home.root), "--backend", spec.backend, "--precision", str(spec.model.precision),
               "--few-shot", "0", "--limit", str(EVERY_ROW), "--json"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = json.loads(lines[-1]).get("message") if lines else None
        raise RuntimeError(f"evaluate: {said or done.stderr.strip()}")
    scores = json.loads(lines[-1])
    return {
        f"{what}_{when}": round(scores[side]["loss"] if what == "loss" else scores[side]["exact"]["mean"], 6)
        for what in ("loss", "exact")
        for when, side in (("before", "base"), ("after", "tuned"))
    }


def _wanted(only: str | None, on: str | None) -> list[tuple[str, Backend]]:
    usable = {name: backend for name, backend in backends().items() if backend.missing() is None}
    keys = [key.strip() for key in only.split(",")] if only else list(presets())
    if unknown := [key for key in keys if key not in presets()]:
        raise SystemExit(f"--only {unknown[0]}: no such method. Known: {', '.join(presets())}.")
    if on is not None and on not in usable:
        raise SystemExit(f"--backend {on}: not here. Usable: {', '.join(usable) or 'none'}.")
    return [(key, backend) for key in keys for name, backend in usable.items() if on in (None, name)]


def _done(results: Path, setup: Setup) -> set[tuple[str, str]]:
    """Methods and backends that the file has. Another setup's lines in it would make a table of unlike things."""
    if not results.exists():
        return set()
    lines = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    for line in lines:
        if different := [name for name, value in asdict(setup).items() if line["setup"].get(name) != value]:
            name = different[0]
            raise SystemExit(
                f"{results} was measured with {name} = {line['setup'].get(name)}, not {asdict(setup)[name]}. "
                "Give another file with --results, or delete this one to measure all anew."
            )
    return {(line["method"], line["backend"]) for line in lines}


def machine_facts(backend: Backend) -> dict[str, Any]:
    """What a line of results tells of the machine it was measured on."""
    here = machine()
    return {
        "cpu": cpu_name(),
        "processors": here.processors,
        "memory_bytes": here.memory_bytes,
        "system": "Linux" if here.system.startswith("Linux") else here.system,
        "python": here.python,
        "libraries": backend.versions(),
    }


def _said(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return f"  failed: {found['error']}: {found['message'].splitlines()[-1]}"
    return (
        f"  held-out loss {found['loss_before']:.3f} → {found['loss_after']:.3f}, exact {found['exact_before']:.0%} → "
        f"{found['exact_after']:.0%}, {found['seconds']:.0f} s"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--report", action="store_true", help="write docs/methods.md and docs/methods.svg; measure nothing"
    )
    parser.add_argument("--only", metavar="METHOD,METHOD", help="these methods alone")
    parser.add_argument("--backend", metavar="NAME", help="this backend alone")
    parser.add_argument("--again", action="store_true", help="measure also what the file has; the newest line counts")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data", type=Path, default=paths.assets() / "example" / "orders.jsonl")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8, help="rows per step")
    parser.add_argument("--held-out", type=float, default=0.25, help="share of the rows that is not learned from")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--precision", default="fp32", help="of the base, where the method's name says nothing of it")
    parser.add_argument("--threads", type=int, default=processors(Path("/sys/fs/cgroup")))
    parser.add_argument("--home", help="where models are")
    parser.add_argument("--results", type=Path, help="the file of results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
