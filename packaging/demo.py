"""The main job on a small example: train the default model, then ask it before and after."""

from __future__ import annotations

import json
import shutil
import subprocess
import textwrap
from typing import Any

from environment import ROOT, Environment, SetupFailed, say

EXAMPLE = ROOT / "assets" / "example"
TRAIN, HELD_OUT = EXAMPLE / "orders.jsonl", EXAMPLE / "held_out.jsonl"
SETTINGS = (
    *("--method", "lora", "--epochs", "3", "--batch-size", "8", "--learning-rate", "1e-3", "--validation", "0.05"),
    *("--validate-every", "19", "--sample-rows", "1", "--sample-tokens", "24"),
)
QUESTION = 0  # which held-out row is asked


def run(environment: Environment) -> int:
    """Train, ask base and tuned model the same held-out question, and say where everything lies; the exit code."""
    program = environment.program("finetune-local")
    name = _free_name(program)
    say("a café's orders become the short code of its till; no model knows that code before.")
    say(f"training on {TRAIN.relative_to(ROOT)} (the small default model, about 100 MB, is fetched the first time).")
    if code := environment.run([program, "train", "--data", str(TRAIN), "--run", name, *SETTINGS]):
        return code
    adapter = next(run["adapter"] for run in _answer(program, "runs") if run["run"] == name)
    row = json.loads(HELD_OUT.read_text("utf-8").splitlines()[QUESTION])["messages"]
    say("asking both a question that was not in the training data.")
    ask = ("generate", "--prompt", row[0]["content"], "--temperature", "0", "--max-tokens", "48")
    base, tuned = _answer(program, *ask)["text"], _answer(program, *ask, "--adapter", str(adapter))["text"]
    print(_side_by_side(row[0]["content"], row[1]["content"], base, tuned))
    say(f"the adapter is in {adapter}")
    say(f"chat with it:    {_short(program)} chat --adapter {name}")
    say(f"measure it:      {_short(program)} evaluate --adapter {name} --data {HELD_OUT.relative_to(ROOT)}")
    say(f"take it along:   {_short(program)} export {name} --to gguf --out orders.gguf")
    return 0


def _free_name(program: str) -> str:
    """`demo`, or `demo-2` and so on where that run is already there, so that the demo can be repeated."""
    taken = {run["run"] for run in _answer(program, "runs")}
    return next(name for n in range(1, 10_000) if (name := "demo" if n == 1 else f"demo-{n}") not in taken)


def _answer(program: str, *arguments: str) -> Any:
    """The last line of what a verb prints with --json."""
    command = [program, *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SetupFailed(f"`{' '.join(command)}` failed:\n{done.stderr or done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])


def _side_by_side(question: str, expected: str, base: str, tuned: str) -> str:
    width = max(30, min(56, shutil.get_terminal_size((100, 24)).columns // 2 - 4))
    left, right = textwrap.wrap(base, width) or [""], textwrap.wrap(tuned, width) or [""]
    lines = ["", f"  question   {question}", f"  expected   {expected}", ""]
    lines += [f"  {'before (base model)':{width}}  after (with the adapter)", f"  {'-' * width}  {'-' * width}"]
    for i in range(max(len(left), len(right))):
        lines.append(f"  {left[i] if i < len(left) else '':{width}}  {right[i] if i < len(right) else ''}".rstrip())
    return "\n".join([*lines, ""])


def _short(program: str) -> str:
    """The program as the user would type it in the checkout."""
    return program.removeprefix(str(ROOT)).lstrip("/\\") if program.startswith(str(ROOT)) else program
