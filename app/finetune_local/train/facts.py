"""What lists of runs show: one plain object a run, from its run.json and its last events, quick enough for a thousand runs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune_local.files import stamp
from finetune_local.paths import Home
from finetune_local.system.process import started_at
from finetune_local.train import runs
from finetune_local.train.runs import Run, status_after


class Listing:
    """The facts of all runs, kept in memory: of a thousand only those that have changed are read again."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._known: dict[Path, tuple[object, dict[str, Any]]] = {}
        self._looked = -math.inf

    def all(self, patience: float = 0.0) -> list[dict[str, Any]]:
        """Of every run, the newest first; as they were at most `patience` seconds ago."""
        if time.monotonic() - self._looked < patience:
            return [facts for _, facts in self._known.values()]
        self._looked = time.monotonic()
        found: dict[Path, tuple[object, dict[str, Any]]] = {}
        for run in runs.every(self._home):
            now, known = _stamp(run), self._known.get(run.folder)
            # That a worker was killed changes no file.
            same = known is not None and known[0] == now and known[1]["status"] != "running"
            found[run.folder] = known if same and known is not None else (now, facts_of(run))
        self._known = found
        return [facts for _, facts in found.values()]


def facts_of(run: Run) -> dict[str, Any]:
    """Name, status, method, model, data, losses, dates; a damaged run is listed as such, with what is wrong.

    `steps` are those done by a run that has ended, and those to do (`max_steps`) of any other; `step` is how far that one is.
    """
    file = run.folder / "run.json"
    changed = _changed(file)
    recent = run.newest()
    last = next(recent, {})
    working = run.lives()
    facts: dict[str, Any] = {
        "run": run.name,
        "status": status_after(last or None, working, run.worker_file.exists()),
        "folder": str(run.folder),
        "changed": time.strftime("%Y-%m-%d %H:%M", time.localtime(changed)),
        "changed_time": changed,
    }
    try:
        spec = json.loads(file.read_text("utf-8"))
        facts.update(
            method=_key(spec["method"]),
            model=str(spec["model"]["id"]),
            backend=spec["backend"],
            precision=spec["model"]["precision"],
            steps=spec["training"]["max_steps"],
            max_steps=spec["training"]["max_steps"],
            files=[str(name) for name in spec["data"]["files"]],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {
            **facts,
            "status": "damaged",
            "problem": f"{file}: cannot be read ({error!r}). The run cannot be resumed.",
        }
    if isinstance(summary := last.get("summary"), Mapping):
        facts.update(summary)
    else:
        facts |= _newest([last, *recent])
    if "seconds" not in facts and working:
        pid = run.worker()
        if pid is not None and (began := started_at(pid)) is not None:
            facts["seconds"] = time.time() - began
    facts["run"] = run.name  # the summary of a run that was renamed since has another name and place
    facts.pop("adapter", None)
    if last.get("event") == "failed":
        facts["problem"] = str(last.get("message", ""))
    if run.adapter.exists():
        facts["adapter"] = str(run.adapter)
    return facts


def all_facts(home: Home) -> list[dict[str, Any]]:
    """Of every run, the newest first."""
    return Listing(home).all()


def _newest(recent: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Step and losses of a run that has said no summary, as far as its newest events tell."""
    found: dict[str, Any] = {}
    for line in recent:
        kind = line.get("event")
        if kind in ("started", "step", "checkpoint", "validation", "sample"):
            found.setdefault("step", line.get("step"))
        if kind == "step":
            found.setdefault("last_loss", line.get("loss"))
        elif kind == "validation":
            found.setdefault("validation_loss", line.get("loss"))
    return found


def _stamp(run: Run) -> object:
    return stamp(run.folder, "run.json", "events.jsonl", "worker.json", "adapter")


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # removed a moment ago
        return 0.0


def _key(method: Any) -> str:
    return str(method["key"] if isinstance(method, Mapping) else method)
