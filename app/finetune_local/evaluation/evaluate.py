"""One evaluation by names, from opening the model to the folder on disk: the verb and the window's job both run it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_local.evaluation import store
from finetune_local.evaluation.report import Choices, Evaluation, evaluate
from finetune_local.inference.engine import open_chat
from finetune_local.system.paths import Home


@dataclass(frozen=True)
class Done:
    """A finished evaluation, and where it is kept."""

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
    """Evaluate, and keep the result. `opening` reports how far the model is loaded, `progress` the condition and the share of the whole.

    Raises SpecError, DataError, ModelError, AdapterError, Unsupported, OutOfMemory, DiskFull.
    """
    started = time.monotonic()
    opened = open_chat(
        home, model, [adapter] if adapter else [], backend=backend, precision=precision, note=note, progress=opening
    )
    loading = time.monotonic() - started
    evaluation = evaluate(opened, choices, progress, note)
    return Done(evaluation, store.save(opened, choices, evaluation, loading))
