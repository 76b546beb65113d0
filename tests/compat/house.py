"""The one place in which these tests name the app's modules: what trains here, in this process, as the worker does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("app", "backends", "tests") if str(ROOT / part) not in sys.path]

Json = dict[str, Any]


def usable_backends() -> list[str]:
    """Names of the backends that this machine can train with."""
    from finetune_local.backend import backends

    return [name for name, backend in backends().items() if backend.missing() is None]


def method_keys() -> list[str]:
    """Every method of the app."""
    from finetune_local.spec.presets import presets

    return list(presets())


def make_runs(home: Path, specs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """New run folders from tables as a run.toml has them, checked together as `train` checks them."""
    from finetune_local.spec.run import parse_spec
    from finetune_local.system.paths import Home
    from finetune_local.training.run_folder import begin

    parsed = [parse_spec(tables, "tests/compat") for tables in specs]
    return [run.folder for run, _ in begin.checked(parsed, Home(home), lambda *_: None)]


def train(home: Path, folders: Sequence[Path], stop_after: int | None = None) -> list[list[Json]]:
    """Train runs from where they stand, several at once on one base; what each told from here on, as in events.jsonl.

    `stop_after`: ask every run to stop once it has done this many steps.
    """
    from finetune_local.system.paths import Home
    from finetune_local.training import multi_adapter
    from finetune_local.training.loop import Loop
    from finetune_local.training.run_folder.runs import Run
    from finetune_local.training.setup import Ready, make_ready

    loops: list[Loop] = []
    told: list[list[Json]] = []
    for folder in folders:
        run, items = Run(folder), []
        for item in make_ready(run, Home(home), loops[0].ready if loops else None):
            items.append(item)
            if not isinstance(item, Ready):
                run.append(item)
        ready = items.pop()
        loops.append(Loop(ready, _stops(ready, stop_after)))
        told.append([event.as_json() for event in items])
    every = (
        multi_adapter.events_of_all(loops)
        if len(loops) > 1
        else ((loops[0], event) for event in multi_adapter.events(loops[0]))
    )
    for loop, event in every:
        loop.ready.run.append(event)
        told[loops.index(loop)].append(event.as_json())
    return told


def _stops(ready: Any, after: int | None) -> Callable[[], bool]:
    return lambda: after is not None and ready.state.step >= after
