"""Things of the app that cannot be read. Lists show them with a reason, beside the intact ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Damaged:
    """One thing by its name and path; `problem` is a sentence."""

    name: str
    place: Path
    problem: str
