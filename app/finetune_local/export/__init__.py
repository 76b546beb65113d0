"""A tuned model for other programs: one file per target, found by listing this folder; `verify.py` is the gate behind each.

A target is a module with
    TARGET: Target        its key, its quantisations, and how it writes
The other modules here are what the targets are made of.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from finetune_local.export.weights import MergedWeights

Progress = Callable[[str, float | None], None]
"""What is being done, and how much of it is done from 0 to 1 (None: unknown)."""


def silent(what: str, done: float | None) -> None:
    """Progress for those who do not look."""


class Target(Protocol):
    """One kind of export. `quants` are its number formats, the default first."""

    key: str
    title: str
    quants: tuple[str, ...]

    def place(self, out: Path, name: str, quant: str) -> Path:
        """Where the export goes when the user says `out`; `name` is the model's, for a file put into a folder."""
        ...

    def write(self, weights: MergedWeights, out: Path, quant: str, progress: Progress) -> list[Path]:
        """Write everything at `out`, whole or not at all, and return the files. Raises ModelError, DiskFull."""
        ...


@cache
def targets() -> Mapping[str, Target]:
    """Every target by its key."""
    found: dict[str, Target] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name != "llama_worker":  # a script of its own, for another process
            target: Target | None = getattr(importlib.import_module(f"{__name__}.{module.name}"), "TARGET", None)
            if target is not None:
                found[target.key] = target
    return found
