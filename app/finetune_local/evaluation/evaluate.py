"""Run one evaluation, from opening the model to saving the result (for the verb and the job), and estimate it beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.adapters.library import run_folder, run_tables
from finetune_local.data.dataset.prepare import conversations
from finetune_local.data.readers.read import read, reading
from finetune_local.evaluation import store
from finetune_local.evaluation.report import RUN_ROWS, Choices, Evaluation, evaluate
from finetune_local.evaluation.rows import collect
from finetune_local.inference.engine import open_chat
from finetune_local.system.paths import Home

MOST_COUNTED = 1000
"""A file's rows are counted up to this number."""


@dataclass(frozen=True)
class Done:
    """A finished evaluation and its saved copy."""

    evaluation: Evaluation
    saved: store.Saved

    def as_json(self) -> dict[str, Any]:
        """What `evaluate --json` prints."""
        return {**self.evaluation.as_json(), "evaluation": self.saved.name, "folder": str(self.saved.folder)}


def run(
    home: Home,
    model: str | None,
    adapter: str | None,
    choices: Choices,
    *,
    backend: str = "auto",
    precision: str | None = None,
    note: Callable[[str], None] = lambda _: None,
    opening: Callable[[str, float | None], None] = lambda _what, _done: None,
    progress: Callable[[str, float], None] = lambda _name, _done: None,
) -> Done:
    """Evaluate and save the result. `opening` reports loading, `progress` the condition and the share of all work that is done.

    Raises SpecError, DataError, ModelError, AdapterError, Unsupported, OutOfMemory, DiskFull.
    """
    started = time.monotonic()
    opened = open_chat(
        home, model, [adapter] if adapter else [], backend=backend, precision=precision, note=note, progress=opening
    )
    loading = time.monotonic() - started
    evaluation = evaluate(opened, choices, progress, note)
    return Done(evaluation, store.save(opened, choices, evaluation, loading))


def rows_of(adapter: Path | None, files: Sequence[Path], limit: int | None) -> tuple[int | None, bool]:
    """The number of rows that would be evaluated (None: unknown), and whether the file may have more. Raises DataError, AdapterError."""
    run = run_folder(adapter) if adapter is not None else None
    if files:
        settings = reading(run_tables(adapter).get("data", {}) if adapter is not None else {})
        most = min(limit or MOST_COUNTED, MOST_COUNTED)
        count = len(collect(read(files, settings), most)[0])
        return count, limit is None and count == MOST_COUNTED
    if run is None:
        return None, False
    return len(collect(conversations(run / "data"), limit or RUN_ROWS)[0]), False


def seconds_of(home: Home, model: str, rows: int | None, few_shot: int, *, tuned: bool) -> float | None:
    """Estimated seconds to evaluate a model (by its name); None if it was never evaluated.

    Seconds per row and condition are those of its newest evaluation; for the few-shot base they are scaled by the number of examples.
    """
    if rows is None:
        return None
    for saved in store.every(home):
        result = saved.result
        spent: dict[str, float] = result.get("seconds") or {}
        before = int(result.get("rows") or 0)
        if result.get("model") != model or not before or not spent.get("base"):
            continue
        base = spent["base"] / before
        shown = int(result.get("examples") or 0)
        prompted = base * (1 + few_shot)  # a guess, if the evaluation had no examples
        if spent.get("few_shot") and shown:
            prompted = spent["few_shot"] / before * (1 + few_shot) / (1 + shown)
        adapted = (spent.get("tuned") or spent["base"]) / before
        each = base + (prompted if few_shot else 0.0) + (adapted if tuned else 0.0)
        return spent.get("loading", 0.0) + rows * each
    return None
