"""What papers report of methods, in the small: five comparisons, each trained as `finetune-local train` does.

    python benchmarks/ablations.py                        on one thread; a quarter of an hour on an idle CPU
    python benchmarks/ablations.py --only ranks,dora --backend mlx --steps 20

    lora-plus   LoRA+ reaches a loss sooner than LoRA, at the same steps and rate (arXiv:2402.12354)
    lora-fa     LoRA with A frozen takes less memory, and its optimizer fewer bytes (arXiv:2308.03303)
    ranks       rank 2 on q, k, v, o is better than rank 4 on q, k, of as many parameters (arXiv:2106.09685, section 7.1)
    merged      a merged model answers as fast as its base; an adapter beside it costs time (arXiv:2106.09685, section 4.1)
    dora        DoRA is better than LoRA of the same low rank (arXiv:2402.09353, section 5.1)

Each comparison prints its figures, says whether the result of the paper appeared, and appends one line to
benchmarks/results/ablations-CPU.jsonl. One seed and few rows: a small difference of losses is no evidence either way.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cpu import cpu_name, slug
from methods import ROOT, THREADS, Setup, machine_facts, tables, train

from finetune_local import __version__
from finetune_local.adapters.attach import attach
from finetune_local.backend import Backend, Session, backends
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.export.targets.merged import write_merged
from finetune_local.inference.generate import generate
from finetune_local.inference.sampling import Sampling
from finetune_local.models.folder import ModelFolder, sha256_of
from finetune_local.models.resolve import resolve
from finetune_local.spec import defaults
from finetune_local.spec.run import DEFAULT_MODEL, parse_spec
from finetune_local.system import paths
from finetune_local.training.checkpoints.checkpoint import OPTIMIZER, latest
from finetune_local.training.events import Step, Validation
from finetune_local.training.run_folder import runs
from finetune_local.training.setup import check_before_loading

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SMOOTH = 5
"""Steps whose training losses are averaged before one is said to be below another: single batches differ too much."""
EVERY = 10
"""Steps between two looks at the held-out rows."""
SAME_SPEED = 0.05
"""Share by which two speeds may differ and still be called the same."""


@dataclass(frozen=True)
class Arm:
    """One training: a method and its settings; `rate` 0 takes the app's own."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 0.0


LORA = Arm("lora")
LOW = {"rank": 2, "targets": ATTENTION}


class Bench:
    """Trains arms, each once; keeps adapters until the end."""

    rate_shares: tuple[float, ...] = (1.0, 0.25)

    def __init__(self, setup: Setup, backend: Backend, model: ModelFolder, data: Path, home: paths.Home, scratch: Path):
        self.setup, self.backend, self.model, self.data, self.home = setup, backend, model, data, home
        self.scratch = paths.Home(scratch)
        self._done: dict[str, dict[str, Any]] = {}

    @property
    def rate(self) -> float:
        """LoRA's automatic rate for this model."""
        facts = defaults.Facts("cpu", 1 << 40, self.model.hidden_size, 0, 0, 100, 100)
        return float(defaults.resolve(parse_spec({}, "ablation"), facts)[0].training.learning_rate or 0.0)

    def trained(self, arm: Arm, setup: Setup | None = None) -> dict[str, Any]:
        """What the run told: its summary, losses by step, held-out losses by step, bytes of the optimizer's states."""
        used = setup or self.setup
        key = json.dumps([asdict(arm), asdict(used)])
        if key not in self._done:
            print(f"  training {arm.method} {dict(arm.settings) or ''} …", flush=True)
            wanted = tables(arm.method, self.backend, used, self.model, self.data)
            wanted["method"] |= arm.settings
            wanted["training"] |= {"validate_every": max(1, min(EVERY, used.steps // 2))}
            if arm.rate:
                wanted["training"]["learning_rate"] = arm.rate
            self._done[key] = self._train(wanted)
        return self._done[key]

    def _train(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        spec, _ = check_before_loading(parse_spec(wanted, "ablation"), self.home, lambda *_: None)
        run = runs.create(self.scratch, spec)
        try:
            found = train(run, self.home)
        except KeyboardInterrupt:
            run.kill()
            raise SystemExit("\nstopped; what was written stays") from None
        happened = list(run.history())
        newest = latest(run.checkpoints)
        assert newest is not None
        return found | {
            "losses": {e.step: round(e.loss, 6) for e in happened if isinstance(e, Step)},
            "held_out": {e.step: round(e.loss, 6) for e in happened if isinstance(e, Validation)},
            "optimizer_bytes": (newest / OPTIMIZER).stat().st_size,
            "learning_rate": run.spec.training.learning_rate,
            "adapter": run.adapter,
        }


def lora_plus(bench: Bench) -> tuple[bool, dict[str, Any], str]:
    """At each share of LoRA's automatic rate both get the same rate; LoRA's last training loss is the mark to reach."""
    steps = bench.setup.steps
    shown = sorted({step for step in (10, 20, 40) if step < steps} | {steps})
    figures: dict[str, Any] = {}
    said, sooner = [], []
    for share in bench.rate_shares:
        rate = float(f"{bench.rate * share:.2g}")
        arms = {"LoRA": bench.trained(Arm("lora", rate=rate)), "LoRA+": bench.trained(Arm("lora-plus", rate=rate))}
        threshold = smooth(arms["LoRA"]["losses"])[steps]
        first = {name: first_below(arm["losses"], threshold) for name, arm in arms.items()}
        figures[f"{rate:g}"] = {
            name: {
                "training_loss": {str(step): smooth(arm["losses"])[step] for step in shown},
                "held_out_loss": {str(step): arm["held_out"][step] for step in shown if step in arm["held_out"]},
                "first_step_below": first[name],
            }
            for name, arm in arms.items()
        } | {"threshold": threshold}
        sooner.append(first["LoRA+"] is not None and first["LoRA+"] < first["LoRA"])
        ends = ", ".join(f"{name} {arm['held_out'][steps]:.3f}" for name, arm in arms.items())
        said.append(
            f"rate {rate:g}: a training loss (mean of {SMOOTH} steps) of {threshold:.3f} by LoRA {_at(first['LoRA'])}, by "
            f"LoRA+ {_at(first['LoRA+'])}; held-out loss at the end {ends}"
        )
    return all(sooner), figures, "; ".join(said)


def lora_fa(bench: Bench) -> tuple[bool, dict[str, Any], str]:
    """Three steps of rows enough to fill a micro-batch; the peak is that of the whole worker process."""
    setup = replace(bench.setup, steps=3, batch_size=16)
    arms = {"LoRA": bench.trained(LORA, setup), "LoRA-FA": bench.trained(Arm("lora-fa"), setup)}
    kept = ("trainable_parameters", "peak_memory_bytes", "optimizer_bytes")
    figures = {name: {what: arm[what] for what in kept} for name, arm in arms.items()}
    plain, frozen = figures["LoRA"], figures["LoRA-FA"]
    held = all(frozen[what] < plain[what] for what in kept)
    said = "; ".join(
        f"{name}: peak {arm['peak_memory_bytes'] / 1e6:.0f} MB, optimizer's states {arm['optimizer_bytes'] / 1e6:.1f} MB"
        for name, arm in figures.items()
    )
    return held, {"steps": setup.steps, "batch_size": setup.batch_size, "arms": figures}, said


def ranks(bench: Bench) -> tuple[bool, dict[str, Any], str]:
    """The same budget spread over more matrices."""
    arms = {
        "rank 2 on q, k, v, o": bench.trained(Arm("lora", LOW)),
        "rank 4 on q, k": bench.trained(Arm("lora", {"rank": 4, "targets": ATTENTION[:2]})),
    }
    return _by_loss(bench, arms)


def dora(bench: Bench) -> tuple[bool, dict[str, Any], str]:
    """At rank 2 on attention's matrices."""
    return _by_loss(
        bench, {"DoRA, rank 2": bench.trained(Arm("dora", LOW)), "LoRA, rank 2": bench.trained(Arm("lora", LOW))}
    )


def merged(bench: Bench) -> tuple[bool, dict[str, Any], str]:
    """Base, merged model and adapter beside the base in turn; CPU-seconds of a greedy answer (wall-clock on a card)."""
    arm, setup = bench.trained(LORA), bench.setup
    folder = bench.scratch.root / "merged"
    write_merged(bench.model, arm["adapter"], folder)
    beside = bench.backend.load(bench.model.path, setup.precision)  # type: ignore[arg-type]
    tokenizer = Tokenizer.load(bench.model.path)
    attach(beside, bench.model, tokenizer, arm["adapter"], "tuned")
    whole = bench.backend.load(folder, setup.precision)  # type: ignore[arg-type]
    ids = tokenizer.ids("One small coffee and two large muffins to go, please. " * 4)
    ways: dict[str, tuple[Session, str | None]] = {
        "base": (beside, None),
        "merged": (whole, None),
        "adapter": (beside, "tuned"),
    }
    seconds, rounds, length = dict.fromkeys(ways, 0.0), 6, 48
    clock = time.process_time if beside.device.kind == "cpu" else time.perf_counter
    for turn in range(rounds + 1):
        for name, (session, adapter) in ways.items():
            session.activate(adapter)
            began = clock()
            made = len(list(generate(session, ids, Sampling(temperature=0, max_tokens=length), ())))
            assert made == length
            if turn:  # the first warms up
                seconds[name] += clock() - began
    speed = {name: round(rounds * length / spent, 2) for name, spent in seconds.items()}
    figures = {
        "prompt_tokens": len(ids),
        "tokens": rounds * length,
        "seconds": {name: round(spent, 3) for name, spent in seconds.items()},
        "tokens_per_second": speed,
        "by": "CPU-seconds" if beside.device.kind == "cpu" else "seconds",
    }
    held = speed["merged"] > (1 - SAME_SPEED) * speed["base"] and speed["adapter"] < speed["base"]
    said = ", ".join(f"{name} {value:.1f}" for name, value in speed.items()) + f" tokens per {figures['by'][:-1]}"
    return held, figures, said


ABLATIONS: Mapping[str, tuple[Callable[[Bench], tuple[bool, dict[str, Any], str]], str]] = {
    "lora-plus": (lora_plus, "LoRA+ reaches LoRA's last training loss in fewer steps, at the same rate"),
    "lora-fa": (lora_fa, "LoRA-FA takes less memory than LoRA"),
    "ranks": (ranks, "rank 2 on q, k, v, o ends at a lower held-out loss than rank 4 on q, k"),
    "merged": (merged, f"a merged model is as fast as its base (up to {SAME_SPEED:.0%}), an adapter beside it slower"),
    "dora": (dora, "DoRA ends at a lower held-out loss than LoRA of the same rank"),
}


def smooth(losses: Mapping[int, float]) -> dict[int, float]:
    """At each step the mean of its loss and of those before it, at most SMOOTH in all."""
    return {
        step: round(sum(window := [losses[s] for s in losses if step - SMOOTH < s <= step]) / len(window), 6)
        for step in losses
    }


def first_below(losses: Mapping[int, float], threshold: float) -> int | None:
    """The first step at which the smoothed loss is at or below the threshold, once there are enough steps to smooth."""
    enough = min(SMOOTH, max(losses))
    return next((step for step, loss in smooth(losses).items() if step >= enough and loss <= threshold), None)


def _by_loss(bench: Bench, arms: Mapping[str, Mapping[str, Any]]) -> tuple[bool, dict[str, Any], str]:
    """The first arm is the one that should end lower."""
    kept = ("trainable_parameters", "held_out", "learning_rate", "cpu_seconds")
    figures = {name: {what: arm[what] for what in kept} for name, arm in arms.items()}
    better, worse = (arm["held_out"][bench.setup.steps] for arm in arms.values())
    said = "; ".join(
        f"{name}: {arm['trainable_parameters']:,} parameters, held-out loss {arm['held_out'][bench.setup.steps]:.4f}"
        for name, arm in arms.items()
    )
    return better < worse, {"arms": figures, "difference": round(better - worse, 6)}, said


def _at(step: int | None) -> str:
    return "never" if step is None else f"at step {step}"


def main() -> None:
    """Run what was asked for, one after another."""
    given = _arguments()
    wanted = [key.strip() for key in given.only.split(",")] if given.only else list(ABLATIONS)
    if unknown := [key for key in wanted if key not in ABLATIONS]:
        raise SystemExit(f"--only {unknown[0]}: no such ablation. Known: {', '.join(ABLATIONS)}.")
    for name in THREADS:
        os.environ[name] = str(given.threads)  # workers inherit it, and torch here has not been imported
    home = paths.home(given.home)
    backend, model = backends()[given.backend], resolve(given.model, home, lambda *_: None)
    setup = Setup(model.name, given.data.name, sha256_of(given.data), given.steps, given.batch_size, given.held_out,
                  given.seed, given.precision, given.threads)  # fmt: skip
    results = given.results or ROOT / "benchmarks" / "results" / f"ablations-{slug(cpu_name())}.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="ablations-"))
    table = []
    try:
        bench = Bench(setup, backend, model, given.data, home, scratch)
        bench.rate_shares = tuple(given.rate_shares)
        for key in wanted:
            compare, claim = ABLATIONS[key]
            print(f"{key}: {claim}", flush=True)
            held, figures, said = compare(bench)
            line = {"ablation": key, "claim": claim, "appeared": held, "figures": figures, "said": said,
                    "backend": backend.name, "date": datetime.date.today().isoformat(), "app_version": __version__,
                    "machine": machine_facts(backend), "setup": asdict(setup)}  # fmt: skip
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            table.append((key, "appeared" if held else "DID NOT APPEAR", said))
            print(f"  {table[-1][1]}: {said}", flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(_table(table))
    print(f"results: {results}")


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    """The verdicts as Markdown."""
    head = ["| ablation | the paper's result | measured |", "|---|---|---|"]
    return "\n".join(["", *head, *(f"| {key} | {verdict} | {said} |" for key, verdict, said in rows)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME,NAME", help=f"of {', '.join(ABLATIONS)}")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--data", type=Path, default=paths.assets() / "example" / "orders.jsonl")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=4, help="rows per step")
    parser.add_argument("--held-out", type=float, default=0.25, help="share of the rows that is not learned from")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument(
        "--rate-shares", type=float, nargs="+", default=[1.0, 0.25], help="lora-plus: rates, by LoRA's automatic one"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--home", help="where models are")
    parser.add_argument("--results", type=Path, help="the file of results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
