"""What lists of runs show: one plain object a run, from its run.json and its last event, quick enough for a thousand runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from finetune_local.paths import Home
from finetune_local.train import runs
from finetune_local.train.runs import Run


def facts_of(run: Run) -> dict[str, Any]:
    """Name, status, method, model, losses, dates; a damaged run is listed as such, with what is wrong."""
    file = run.folder / "run.json"
    changed = file.stat().st_mtime
    facts: dict[str, Any] = {
        "run": run.name,
        "status": run.status(),
        "folder": str(run.folder),
        "changed": time.strftime("%Y-%m-%d %H:%M", time.localtime(changed)),
        "changed_time": changed,
    }
    try:
        spec = json.loads(file.read_text("utf-8"))
        facts.update(
            method=_key(spec["method"]),
            model=spec["model"]["id"],
            backend=spec["backend"],
            precision=spec["model"]["precision"],
            steps=spec["training"]["max_steps"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {
            **facts,
            "status": "damaged",
            "problem": f"{file}: cannot be read ({error!r}). The run cannot be resumed.",
        }
    last = run.last_line() or {}
    if last.get("event") in ("started", "step", "checkpoint", "validation", "sample"):
        facts["step"] = last["step"]
    if isinstance(summary := last.get("summary"), Mapping):
        facts.update(summary)
    facts["run"] = run.name  # the summary of a run that was renamed since has another
    if last.get("event") == "failed":
        facts["problem"] = last["message"]
    if run.adapter.exists():
        facts["adapter"] = str(run.adapter)
    return facts


def all_facts(home: Home) -> list[dict[str, Any]]:
    """Of every run, the newest first."""
    return [facts_of(run) for run in runs.every(home)]


def _key(method: Any) -> str:
    return str(method["key"] if isinstance(method, Mapping) else method)
