"""WikiSQL on the small model: exact match of base, few-shot base and tuned model on held-out questions.

    python benchmarks/wikisql.py TRAIN.jsonl VALID.jsonl [--out FOLDER] [-- options of finetune-local train]

The files hold one {"text": "table: …\\nQ: …\\nA: SELECT …"} per line. The prompt is all up to and with "A: ", the completion
the rest. Prints the figures of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ANSWER = "\nA: "


def convert(source: Path, target: Path) -> int:
    """Rows of {"text"} to rows of {"prompt", "completion"}; returns their number."""
    rows = []
    for line in source.read_text("utf-8").splitlines():
        prompt, mark, completion = json.loads(line)["text"].rpartition(ANSWER)
        rows.append({"prompt": prompt + mark, "completion": completion})
    target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return len(rows)


def cli(*arguments: str) -> Any:
    """The last line of `finetune-local … --json`, its progress going to the terminal."""
    command = [sys.executable, "-m", "finetune_local", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    last = json.loads(done.stdout.strip().splitlines()[-1])
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {last}")
    return last


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("valid", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="folder for the run (default: a temporary one)")
    parser.add_argument("--few-shot", default="5")
    parser.add_argument("options", nargs="*", help="options of finetune-local train, after --")
    given = parser.parse_args()
    place = given.out or Path(tempfile.mkdtemp(prefix="wikisql-"))
    place.mkdir(parents=True, exist_ok=True)
    counts = [
        convert(source, place / name) for source, name in ((given.train, "train.jsonl"), (given.valid, "valid.jsonl"))
    ]
    print(f"{counts[0]} rows to train on, {counts[1]} held out, in {place}", flush=True)
    began = time.perf_counter()
    trained = cli("train", "--data", str(place / "train.jsonl"), "--validation-data", str(place / "valid.jsonl"),
                  "--max-length", "512", "--run", f"wikisql-{int(time.time())}", *given.options)  # fmt: skip
    wall = time.perf_counter() - began
    print(f"trained {trained['steps']} steps in {wall:.0f} s wall (all told), {trained['cpu_seconds']:.0f} CPU s, "
          f"peak {trained['peak_memory_bytes'] / 1e6:.0f} MB; "
          f"loss {trained['first_loss']:.3f} → {trained['last_loss']:.3f}, validation {trained['validation_loss']:.3f}",
          flush=True)  # fmt: skip
    scores = cli("evaluate", "--model", trained["model"], "--adapter", trained["adapter"], "--data",
                 str(place / "valid.jsonl"), "--few-shot", given.few_shot, "--examples", str(place / "train.jsonl"),
                 "--max-tokens", "64", "--backend", trained["backend"])  # fmt: skip
    print(f"| {scores['rows']} held-out rows | loss | exact match | contains | token F1 |\n|---|---|---|---|---|")
    for key in ("base", "few_shot", "tuned"):
        part = scores[key]
        cells = [f"{part['loss']:.3f}"]
        cells += [f"{100 * part[m]['mean']:.0f} % ({100 * part[m]['low']:.0f}–{100 * part[m]['high']:.0f})"
                  for m in ("exact", "contains", "f1")]  # fmt: skip
        print(f"| {key.replace('_', '-')} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
