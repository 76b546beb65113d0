"""Everything of a home that lists read: a damaged run, job, evaluation, conversation or trash entry hides none of the sound ones."""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.chat import conversations, history
from finetune_local.evaluation import store
from finetune_local.runtime import jobs
from finetune_local.runtime.job import Began, Job, Progress
from finetune_local.runtime.job import Finished as JobFinished
from finetune_local.spec.run import parse_spec
from finetune_local.system import trash
from finetune_local.system.errors import FinetuneError
from finetune_local.system.paths import Home
from finetune_local.training.events import Checkpoint, Failed, Finished, Note, Started, Step, Validation
from finetune_local.training.run_folder import facts, runs, settings
from finetune_local.workspace.adapters import Shelf
from fuzz.mutate import mutate_bytes, mutate_json_text

COUNTS = (80, 10_000)

PLACES = {
    "run": "runs/bad", "job": "jobs/20260101-000000-export", "evaluation": "evaluations/bad-1", "chat": "chats", "trash": "trash/1",
}  # fmt: skip


@dataclass(frozen=True)
class Good:
    """A sound home with one of each, beside which another is damaged."""

    home: Path


def prepare(folder: Path) -> Good:
    """One of each, called good and bad."""
    home = Home(folder / "home")
    for name in ("good", "bad"):
        spec = parse_spec({"name": name, "data": {"files": ["x.jsonl"]}, "training": {"max_steps": 3}}, "test")
        run = runs.create(home, spec)
        numbers = {"loss": 1.0, "learning_rate": 1e-4, "gradient_norm": 1.0, "tokens": 1, "supervised_tokens": 1,
                   "tokens_per_second": 1.0, "seconds_left": 1.0, "peak_memory_bytes": 1}  # fmt: skip
        summary = {
            "steps": 3,
            "first_loss": 2.0,
            "last_loss": 1.0,
            "seconds": 3.0,
            "model": "m",
            "device": "cpu",
            "peak_memory_bytes": 5,
        }
        for event in (
            Started(step=0, steps=3, backend="torch", device="cpu", precision="fp32", trainable_parameters=1, total_parameters=2,
                    rows=1, validation_rows=1),
            Note(text="training.seed = 7: automatic"), Step(step=1, steps=3, **numbers),  # type: ignore[arg-type]
            Validation(step=1, loss=1.0, best=True), Checkpoint(step=1, folder="x"), Failed(error="DiskFull", message="m", exit_code=1),
            Finished(reason="all epochs", summary=summary),
        ):  # fmt: skip
            run.append(event)
        run.write_worker_file()
        shutil.copyfile(run.worker_file, run.folder / "worker.lock")
    for number in (0, 1):
        place = home.jobs / f"2026010{number + 1}-000000-export"
        place.mkdir()
        asked = {"kind": "export", "arguments": {"out": "/x", "adapter": "a"}, "created": 1.0 + number}
        (place / "job.json").write_text(json.dumps(asked), "utf-8")
        one = Job(place)
        one.append(Began())
        one.append(Progress(text="writing", done=0.5, facts={"here": 1, "total": 2}))
        one.append(Failed(error="DiskFull", message="m"))
        one.append(JobFinished(result={"name": "x"}))
        span = {"mean": 0.5, "low": 0.4, "high": 0.6}
        measured = {"loss": 1.0, "loss_interval": span, "exact": span, "contains": span, "f1": span}
        result = {"rows": 3, "metric": "f1", "verdict": {"text": "better"}, "base": measured, "tuned": measured, "few_shot": None,
                  "model": "m", "adapter": "a", "created_time": 5.0 + number}  # fmt: skip
        place = home.evaluations / ("good-1", "bad-1")[number]
        place.mkdir()
        (place / "result.json").write_text(json.dumps(result), "utf-8")
        (place / "rows.jsonl").write_text('{"row": 1}\n', "utf-8")
        lines = [{"chat": "x", "created": "2026", "model": "m"}, {"role": "user", "content": "hi"},
                 {"role": "assistant", "content": "yes", "adapter": None, "tokens": 3, "seconds": 1.0}, {"title": "t"}, {"undo": "answer"}]  # fmt: skip
        (home.chats / ("good.jsonl", "bad.jsonl")[number]).write_text(
            "".join(json.dumps(line) + "\n" for line in lines), "utf-8"
        )
        place = home.trash / str(number)
        (place / "run").mkdir(parents=True)
        (place / "trash.json").write_text(
            json.dumps({"kind": "run", "name": "x", "from": "runs/x", "when": 7.0}), "utf-8"
        )
    (home.jobs / "20260102-000000-export").rename(home.jobs / "20260101-000000-export-2")
    (home.jobs / "20260101-000000-export").rename(home.jobs / "20260103-000000-export")
    (home.jobs / "20260101-000000-export-2").rename(home.jobs / "20260101-000000-export")
    return Good(home.root)


def attempt(prepared: Good, draw: random.Random, folder: Path) -> None:
    """Damage one thing, and list all: the sound ones are told, and the damaged one with a reason where it cannot be shown."""
    home = Home(folder / "home")
    shutil.copytree(prepared.home, home.root, symlinks=True)
    kind = draw.choice(list(PLACES))
    place = home.root / PLACES[kind]
    files = [place / "bad.jsonl"] if kind == "chat" else [path for path in sorted(place.iterdir()) if path.is_file()]
    for file in draw.sample(files, draw.randint(1, min(2, len(files)))):
        _damage(file, draw)
    told: dict[str, Any] = {
        "runs": [one.as_json() for one in facts.Listing(home).all()],
        "jobs": [(one.name, vars(one.state())) for one in jobs.every(home)]
        + [(one.name, one.problem) for one in jobs.damaged(home)],
        "running": [one.name for one in jobs.running(home)] + [one.name for one in runs.running(home)],
        "evaluations": [
            (one.name, one.scores().as_json(), one.intervals("base")) for one in store.every(home) if one.conditions()
        ]
        + [(one.name, one.problem) for one in store.damaged(home)],
        "chats": [history.summary(one).as_json() for one in history.every(home)],
        "listed": [vars(one) for one in conversations.listed(home)]
        + [vars(one) for one in conversations.damaged(home)],
        "trash": [vars(one) for one in trash.every(home)] + [vars(one) for one in trash.damaged(home)],
        "shelf": Shelf(home).listing(),
    }
    shown = json.dumps(told, default=str)
    assert any(one["run"] == "good" and one["status"] == "finished" for one in told["runs"])
    assert "20260103-000000-export" in shown and "good-1" in shown and any(one["id"] == "good" for one in told["chats"])
    assert len(told["trash"]) == 2 and any(getattr(one, "name", one) for one in told["trash"])
    run = runs.Run(home.runs / "bad")
    for look in (lambda: run.spec, lambda: settings.settings_of(run), lambda: settings.differences([run, runs.Run(home.runs / "good")]),
                 lambda: list(run.history()), run.last_event, run.status, run.worker_pid):  # fmt: skip
        try:
            look()
        except FinetuneError as error:
            str(error).encode("utf-8")


def _damage(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    change = draw.random()
    if change < 0.08:
        file.unlink()
        kind = draw.randrange(3)
        if kind == 0:
            os.mkfifo(file)
        elif kind == 1:
            file.mkdir()
        else:
            file.symlink_to(draw.choice(("/dev/zero", "nowhere", ".", file.name)))
    elif file.suffix == ".json":
        file.write_bytes(mutate_json_text(content, draw))
    elif file.suffix == ".jsonl" and change < 0.7:
        lines = content.splitlines(keepends=True)
        at = draw.randrange(len(lines))
        lines[at] = mutate_json_text(lines[at], draw).replace(b"\n", b" ") + b"\n"
        file.write_bytes(b"".join(lines))
    else:
        file.write_bytes(mutate_bytes(content, draw))
    if draw.random() < 0.03:
        os.utime(file, (0, draw.choice((1e12, -1e9, 2**40))), follow_symlinks=False)
