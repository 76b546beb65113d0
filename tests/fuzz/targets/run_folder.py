"""A run's folder with one file changed: lists, the page of the run, `runs check --repair` and what resuming reads."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from finetune_local.adapters.identity import FILE as IDENTITY
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.plan import AdapterPlan, Target
from finetune_local.spec.run import parse_spec
from finetune_local.system import checksums
from finetune_local.system.errors import FinetuneError
from finetune_local.system.files import write_text
from finetune_local.system.paths import Home
from finetune_local.training.checkpoints import checkpoint
from finetune_local.training.checkpoints.checkpoint import publish_checkpoint
from finetune_local.training.events import Finished, Note, Step, Validation
from finetune_local.training.run_folder import check, facts, runs
from finetune_local.training.run_folder.watch import Watch
from fuzz.mutate import mutate_bytes, mutate_json_text

COUNTS = (150, 20_000)

PLAN = AdapterPlan("lora", "low_rank", LowRankSettings(rank=2), (Target("model.layers.0.mlp.up_proj", 4, 6),))
SHAPES = {"A": (2, 4), "B": (6, 2)}


def prepare(folder: Path) -> Any:
    """A home with one finished run."""
    home = Home(folder / "home")
    run = runs.create(home, parse_spec({"name": "mine", "data": {"files": ["/x/d.jsonl"]}}, "test"))
    tensors = {
        f"base_model.model.model.layers.0.mlp.up_proj.lora_{n}.weight": np.ones(s, np.float32)
        for n, s in SHAPES.items()
    }
    identity = json.dumps({"base": {"name": "b", "config_sha256": "0", "tokenizer_sha256": "0"}, "method": "lora"})
    for step in (3, 6):
        state = checkpoint.LoopState(step=step, first_loss=1.0, recent_losses=[1.0, 2.0])
        saved = checkpoint.save(
            run.checkpoints,
            PLAN,
            tensors,
            {"x": np.zeros(3)},
            state,
            "b",
            lambda place: write_text(place / IDENTITY, identity),
        )
    publish_checkpoint(run, saved)
    step_done = Step(step=6, steps=6, loss=1.0, learning_rate=0.1, gradient_norm=1.0, tokens=1, supervised_tokens=1,
                     tokens_per_second=1.0, seconds_left=1.0, peak_memory_bytes=1)  # fmt: skip
    for event in (Note(text="n"), step_done, Validation(step=6, loss=1.0, best=True)):
        run.append(event)
    run.append(Finished(reason="all steps done", summary={"steps": 6, "first_loss": 1.5}))
    return home.root


def attempt(prepared: Any, draw: random.Random, folder: Path) -> None:
    """Change a file; nothing but errors of ours may come, and the list shows the run all the same."""
    home = Home(folder / "home")
    shutil.copytree(prepared, home.root, dirs_exist_ok=True)
    run = runs.Run(home.runs / "mine")
    if draw.random() < 0.6:  # as an older version wrote it: nothing but the values can tell
        for file in run.folder.rglob(checksums.SUMS):
            file.unlink()
    file = draw.choice(sorted(path for path in run.folder.rglob("*") if path.is_file()))
    content = file.read_bytes()
    as_json = file.suffix in (".json", ".jsonl") and draw.random() < 0.7
    if file.suffix == ".jsonl" and as_json:
        lines = content.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = mutate_json_text(lines[at], draw)
        content = b"\n".join(lines) + b"\n"
    else:
        content = mutate_json_text(content, draw) if as_json else mutate_bytes(content, draw)
    file.write_bytes(content)
    assert [row.run for row in facts.all_facts(home)] == ["mine"]
    list(run.history())
    Watch(run).refresh(0)
    checkpoint.counters(run.checkpoints)
    for place in checkpoint.every(run.checkpoints):
        with suppress(FinetuneError):
            checkpoint.load(place)
    check.check(run)
    check.check(run, repair=True)
    _ = run.spec
